"""What en, sn and ssn mix is decided by the maps that they are trained on, and stays, in every form and at any size."""

import copy
import io
import pickle
import warnings

import pytest
import safetensors.torch
import torch
import torchvision
from norm_cases import FORMS, images, randomized
from onnxruntime import InferenceSession
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from en.norm import (
    AS_PUBLISHED,
    MapsWarning,
    build_norm,
    fix_maps,
    freeze,
    kernels,
    record_ratios,
    replace_norm,
    update_statistics,
)
from en.norm.trained_maps import maps_of, mixed_layers, mixtures, set_maps

SMALL, LARGE = (4, 4), (5, 6)  # H, W of maps; between their areas lie the thresholds below
CASES = [
    ("en", {"min_pixels": 20, "gate_pixels": 1}),
    ("en", {"min_pixels": 1, "gate_pixels": 20}),
    ("en", {"min_pixels": 20, "gate_pixels": 20, "ratios": "pooled"}),
    ("en", {"min_pixels": 20, "gate_pixels": 20, "mix": "statistics", "activation": "relu"}),
    ("en", {"min_pixels": 20, "gate_pixels": 1, "ratios": "static"}),
    ("sn", {"min_pixels": 20}),
]
every_trained = pytest.mark.parametrize("trained_on", [SMALL, LARGE], ids=["small", "large"])
pytestmark = pytest.mark.filterwarnings("ignore::en.norm.MapsWarning")
jit_is_deprecated = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")


def without_thresholds(layer: nn.Module, as_small: bool) -> nn.Module:
    """A copy that was never trained and mixes, at any size, what the layer mixes on small maps, or on large ones."""
    twin = copy.deepcopy(layer)
    twin.trained_pixels.zero_()
    twin.min_pixels = 10**4 if as_small and layer.min_pixels > 1 else 1
    if hasattr(layer, "gate_pixels"):
        twin.gate_pixels = 10**4 if as_small and layer.gate_pixels > 1 else 1
    return twin


def trained(name: str, options: dict[str, object], size: tuple[int, int]) -> nn.Module:
    layer = randomized(name, 6, **options)
    layer(images(3, 6, *size)).sum().backward()
    layer.zero_grad()
    return layer.eval()


def loaded(layer: nn.Module, name: str, options: dict[str, object]) -> nn.Module:
    twin = build_norm(name, 6, **options).eval()
    twin.load_state_dict(layer.state_dict())
    return twin


def through_safetensors(layer: nn.Module, name: str, options: dict[str, object]) -> nn.Module:
    twin = build_norm(name, 6, **options).eval()
    twin.load_state_dict(safetensors.torch.load(safetensors.torch.save(layer.state_dict())))
    return twin


def exported(layer: nn.Module) -> nn.Module:
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    program = torch.export.export(layer, (images(2, 6, 7, 8),), dynamic_shapes=({2: height, 3: width},))
    return program.module()


def in_onnx(layer: nn.Module):
    auto = torch.export.Dim.AUTO
    sizes = ({2: auto, 3: auto},)
    program = torch.onnx.export(layer, (images(2, 6, 7, 8),), dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


FORMS_OF_A_LAYER = {
    "layers": lambda layer, *_: layer,
    "passes": lambda layer, *_: layer,
    "nothing": lambda layer, *_: layer,
    "plain": lambda layer, *_: layer.plain,
    "copied": lambda layer, *_: copy.deepcopy(layer),
    "pickled": lambda layer, *_: pickle.loads(pickle.dumps(layer)),
    "loaded": loaded,
    "safetensors": through_safetensors,
    "compiled": lambda layer, *_: torch.compile(layer, backend="aot_eager", fullgraph=True),
    "exported": lambda layer, *_: exported(layer),
    "traced": lambda layer, *_: torch.jit.trace(layer, images(2, 6, 7, 8)),
    "vmap": lambda layer, *_: torch.func.vmap(lambda x: layer(x[None])[0]),
    "in training": lambda layer, *_: copy.deepcopy(layer).train(),
}


SOME = [CASES[2], CASES[3], CASES[5]]  # both thresholds, both gates and mixtures: to compile a graph takes seconds


@jit_is_deprecated
@every_trained
@pytest.mark.parametrize(
    ("of", "name", "options"),
    [(of, *case) for of in FORMS_OF_A_LAYER for case in (SOME if of == "compiled" else CASES)],
    ids=str,
)
def test_a_layer_mixes_at_any_size_what_it_mixed_in_training_in_every_form(of, name, options, trained_on, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, FORMS.get(of, "1"))
    layer = trained(name, options, trained_on)
    expected = without_thresholds(layer, trained_on == SMALL)
    form = FORMS_OF_A_LAYER[of](layer, name, options)
    for size in (SMALL, LARGE, (2, 2), (9, 8)):
        x = images(2, 6, *size)
        want = expected.train(of == "in training")(x)
        torch.testing.assert_close(form(x), want, rtol=1e-4, atol=1e-5, msg=lambda m, size=size: f"{size}: {m}")


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::DeprecationWarning")  # the exporter's own
@every_trained
def test_onnx_runtime_mixes_at_any_size_what_the_layer_mixed_in_training(trained_on):
    layer = trained(*CASES[2], trained_on)
    session = in_onnx(layer)
    for size in (SMALL, LARGE):
        torch.testing.assert_close(session(images(2, 6, *size)), layer(images(2, 6, *size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_in_stays_without_a_share_where_it_was_trained_without_and_keeps_one_where_it_was_trained_with_it(form):
    for size, takes_part in ((SMALL, False), (LARGE, True)):
        layer = trained("en", {"min_pixels": 20}, size)
        with record_ratios(nn.Sequential(layer)) as record:
            for other in (SMALL, LARGE, (9, 9)):
                layer(images(3, 6, *other))
        assert torch.all((record["0"][:, 1] > 0) == takes_part)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_batch_that_is_trained_on_decides_and_no_other_pass(compiled):
    layer = build_norm("en", 6, min_pixels=20)
    call = torch.compile(layer, backend="aot_eager") if compiled else layer
    with torch.no_grad():
        call(images(2, 6, *LARGE))
    update_statistics(layer, [images(2, 6, *LARGE)])
    layer.eval()
    call(images(2, 6, *LARGE))
    layer.train()
    assert layer.mixed is None and "not trained" in repr(layer)
    call(images(2, 6, *SMALL))
    call(images(2, 6, *LARGE))
    assert layer.mixed == ("bn", "ln") and "mixes bn, ln of maps of 16 pixels" in repr(layer)
    layer.reset_parameters()
    assert layer.mixed is None


def test_a_network_that_was_never_trained_goes_by_the_maps_that_it_sees():
    layer = randomized("en", 6, min_pixels=20, gate_pixels=1).eval()
    for size, as_small in ((SMALL, True), (LARGE, False), (SMALL, True)):
        x = images(2, 6, *size)
        torch.testing.assert_close(layer(x), without_thresholds(layer, as_small)(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fix_maps_says_what_a_network_is_trained_on_and_leaves_all_else_alone(device):
    model = replace_norm(torchvision.models.resnet18(num_classes=4), "en")
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if device == "cpu":
        assert fix_maps(model, torch.zeros(1, 3, 64, 96)) is model
    else:
        set_maps(model, maps_of(copy.deepcopy(model).to("meta"), torch.zeros(1, 3, 64, 96, device="meta")))
    assert [module.training for module in model.modules()] == modes
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"{name}.trained_pixels" for name in mixtures(model)]
    assert int(model.bn1.trained_pixels) == 32 * 48 and int(model.layer4[1].bn2.trained_pixels) == 2 * 3
    assert mixed_layers(model) == {"bn, in, ln": 10, "bn, ln": 10}
    fix_maps(model, torch.zeros(1, 3, 224, 224))
    assert mixed_layers(model) == {"bn, in, ln": 15, "bn, ln": 5}
    fix_maps(replace_norm(torchvision.models.resnet18(), "bn"), torch.zeros(1, 3, 32, 32))


def test_averages_of_a_network_that_are_kept_beside_it_follow_it_although_only_its_tensors_are_written_to():
    model = nn.Sequential(build_norm("en", 6, min_pixels=20))
    for average in (ModelEmaV3(model, decay=0.9), AveragedModel(model)):
        kept = average.module[0].eval()
        kept(images(2, 6, *LARGE))
        model[0].fix_pixels(0)
        model.train()(images(2, 6, *SMALL))
        average.update(model) if isinstance(average, ModelEmaV3) else average.update_parameters(model)
        with record_ratios(nn.Sequential(kept)) as record:
            kept.eval()(images(2, 6, *LARGE))
        assert kept.mixed == ("bn", "ln") and not record["0"][:, 1].any()


def test_other_weights_make_a_compiled_layer_mix_what_belongs_to_them():
    layer, other = trained(*CASES[0], SMALL), trained(*CASES[0], LARGE)
    call, x = torch.compile(layer, backend="aot_eager", fullgraph=True), images(2, 6, *LARGE)
    torch.testing.assert_close(call(x), layer(x))
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(call(x), other(x))


@pytest.mark.parametrize("known", [False, True])
def test_weights_of_an_earlier_version_load_and_say_what_they_assume(known):
    old = {name: value for name, value in trained(*CASES[0], SMALL).state_dict().items() if name != "trained_pixels"}
    layer = build_norm("en", 6, **CASES[0][1]).eval()
    if known:
        fix_maps(nn.Sequential(layer), images(1, 6, *SMALL))
    with pytest.warns(MapsWarning, match="without trained_pixels"):
        layer.load_state_dict(old)
    assert layer.mixed == (("bn", "ln") if known else None)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({name: value for name, value in old.items() if name != "weight"})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["en", "sn", "ssn", "bn"])
def test_evaluation_at_a_size_that_differs_by_more_than_a_quarter_warns_once(name):
    model = nn.Sequential(build_norm(name, 6), nn.ReLU(), build_norm(name, 6))
    model(images(2, 6, 8, 8))
    for size in ((8, 8), (10, 10), (6, 6)):
        model.eval()(images(2, 6, *size))
    seen = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            model(images(2, 6, 11, 11)), model(images(2, 6, 5, 5))
        seen.append([str(warning.message) for warning in told])
    assert [len(each) for each in seen] == ([0, 0] if name == "bn" else [1, 0])
    assert name == "bn" or "docs/compatibility.md" in seen[0][0]


@pytest.mark.filterwarnings("error")
def test_training_at_another_size_than_that_of_the_first_batch_warns_unless_the_size_was_said_before():
    layer = build_norm("en", 6)
    layer(images(2, 6, 4, 4))  # to see whether it runs, say
    with pytest.warns(MapsWarning, match="fix_maps"):
        layer(images(2, 6, 8, 8))
    layer(images(2, 6, 16, 16))
    said = fix_maps(nn.Sequential(build_norm("en", 6)), images(1, 6, 16, 16))
    for side in (8, 12, 16):  # progressive resizing
        said(images(2, 6, side, side))
    assert int(said[0].trained_pixels) == 256


def test_the_published_forms_and_frozen_layers_have_nothing_to_decide():
    for name in AS_PUBLISHED:
        layer = randomized(name, 6, **AS_PUBLISHED[name])
        layer(images(2, 6, *SMALL))
        assert layer.mixed == ("bn", "in", "ln")
    model = nn.Sequential(build_norm("en", 6, min_pixels=20))
    freeze(model)
    model.train()(images(2, 6, *SMALL))
    assert model[0].mixed is None


def test_a_buffer_made_in_inference_mode_is_read_too():
    weights = trained("en", {"min_pixels": 20}, SMALL).state_dict()
    with torch.inference_mode():
        layer = build_norm("en", 6, min_pixels=20).eval()
        layer(images(2, 6, *LARGE))
        layer.load_state_dict(weights)
        layer(images(2, 6, *LARGE))
    assert layer.mixed == ("bn", "ln")
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert int(torch.load(io.BytesIO(file.getvalue()), weights_only=True)["trained_pixels"]) == 16


def test_what_is_written_past_torchs_count_of_changes_is_read():
    layer, other = build_norm("en", 6, min_pixels=20).eval(), trained(*CASES[0], SMALL)
    layer(images(2, 6, *LARGE))
    layer.trained_pixels.data.copy_(other.trained_pixels)
    assert layer.mixed == ("bn", "ln")
    for mode in (True, False):
        layer.train(mode).state_dict()["trained_pixels"].copy_(torch.tensor(30))
        assert layer.mixed == ("bn", "in", "ln")
        layer.fix_pixels(16)


def test_averages_of_all_that_a_state_dict_holds_leave_the_options_readable():
    model = nn.Sequential(build_norm("en", 6, min_pixels=20))
    fix_maps(model, images(1, 6, *SMALL))
    for decay in (0.9, 0.9999):
        average = ModelEmaV2(model, decay=decay)
        for _ in range(20):
            model.train()(images(2, 6, *SMALL))
            average.update(model)
        twin = nn.Sequential(build_norm("en", 6, min_pixels=20))
        twin.load_state_dict(average.module.state_dict())
        twin.load_state_dict(model.state_dict())
    cast = {name: value.half() for name, value in model.state_dict().items()}
    twin.load_state_dict(cast)
    assert twin[0].mixed == ("bn", "ln")
    with pytest.raises(RuntimeError, match=r"0\.trained_pixels: expected a whole number of pixels"):
        twin.load_state_dict({**cast, "0.trained_pixels": torch.tensor(65536.0).half()})


@pytest.mark.parametrize("name", ["sn", "en"])
def test_gradients_by_torch_func_in_training_need_no_batch_statistics_and_write_nothing(name):
    layer, x = build_norm(name, 6, normalizers=["in", "ln"]).train(), images(2, 6, *SMALL)
    grad = torch.func.grad(lambda x: layer(x).square().sum())(x)
    x.requires_grad_()
    layer(x).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)


def test_a_layer_can_be_shown_where_its_values_cannot_be_looked_at():
    with FakeTensorMode():
        assert "not trained" in repr(build_norm("en", 6))
