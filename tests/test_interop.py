"""The normalizers in networks and scripts of other people, by those libraries' own functions."""

import copy
import functools
import pickle
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from norm_cases import every_norm, images, randomized
from timm.layers import BatchNormAct2d, convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models.byobnet import MobileOneBlock, RepVggBlock
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import reparameterize_model
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models import resnet18

from en.norm import (
    NORMALIZERS,
    ExemplarNorm2d,
    Normalizer,
    RunningNormalizer,
    build_norm,
    combined,
    convert_sync,
    freeze,
    load_batch_norm,
    param_groups,
    record_ratios,
    replace_norm,
    unfreeze,
    update_statistics,
)

every_mixture = pytest.mark.parametrize("name", ["sn", "en"])
every_running = pytest.mark.parametrize("name", ["bn", "sn", "en"])
PHOTOS = images(4, 3, 32, 32)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    )


def trained(model: nn.Module) -> nn.Module:
    """The network in evaluation, with random affine values and the averages of three batches."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias)
    for seed in range(3):
        model.train()(images(4, 3, 32, 32, seed=seed))
    return model.eval()


# ---- networks that have been trained with batch normalization ----


@every_norm
@pytest.mark.parametrize("make", [network, lambda: timm.create_model("test_efficientnet")], ids=["torch", "timm"])
def test_averages_and_their_count_are_kept_and_a_checkpoint_of_the_network_with_bn_loads_to_the_same(name, make):
    model = trained(make())
    replaced = replace_norm(copy.deepcopy(model), name)
    fresh = replace_norm(make(), name)
    load_batch_norm(fresh, model.state_dict())
    theirs, ours, loaded = model.state_dict(), replaced.state_dict(), fresh.state_dict()
    layers = [place for place, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and ours.keys() == loaded.keys()
    for key in theirs.keys() & ours.keys():
        if ours[key].shape == theirs[key].shape:
            assert torch.equal(ours[key], theirs[key]) and torch.equal(loaded[key], ours[key]), key
    for place in layers:
        rows = ours[f"{place}.bias"].view(-1, len(theirs[f"{place}.bias"]))
        torch.testing.assert_close(rows.sum(0), theirs[f"{place}.bias"])
        assert torch.equal(loaded[f"{place}.bias"], ours[f"{place}.bias"])
        if isinstance(replaced.get_submodule(place), RunningNormalizer):
            assert ours[f"{place}.num_batches_tracked"] == 3
    if name == "bn":
        torch.testing.assert_close(replaced(PHOTOS), model(PHOTOS))
        assert ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("1.weight"), r"1\.weight is missing: expected \(6,\)"),
        (lambda state: state.pop("0.bias"), r"0\.bias is missing"),
        (lambda state: state.update({"9.bias": torch.zeros(1)}), r"9\.bias: no such"),
        (lambda state: state.update({"1.bias": torch.zeros(18)}), r"1\.bias has shape \(18,\): expected \(6,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_changes_nothing(change, words):
    model, state = replace_norm(network(), "en"), trained(network()).state_dict()
    change(state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        load_batch_norm(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_mixture
@pytest.mark.parametrize("options", [{}, {"normalizers": ["in", "ln", "bn"]}], ids=["", "last"])
def test_a_warm_start_computes_what_the_network_with_bn_does_the_closer_the_further_bn_is_ahead(
    name, options, monkeypatch
):
    model, far = trained(network()), []
    for ahead in (0.0, combined.HEAD_START, 50.0):
        monkeypatch.setattr(combined, "HEAD_START", ahead)
        warm = replace_norm(copy.deepcopy(model), name, start="bn", **options)
        far.append((warm(PHOTOS) - model(PHOTOS)).abs().max().item())
    assert far[2] < 1e-4 < far[1] < far[0]


def test_a_warm_start_is_among_the_normalizers_and_comes_back_with_reset_parameters():
    with pytest.raises(ValueError, match="start='bn': expected one of in, ln"):
        build_norm("en", 6, normalizers=["in", "ln"], start="bn")
    for options in ({}, {"ratios": "static"}, {"ratios": "pooled"}):
        layer = build_norm("en", 6, start="ln", **options)
        with record_ratios(layer) as before:
            layer(images(2, 6, 3, 3))
        nn.init.normal_(next(p for name, p in layer.named_parameters() if name in ("gate.2.bias", "ratio_logits")))
        layer.reset_parameters()
        with record_ratios(layer) as after:
            layer(images(2, 6, 3, 3))
        assert before[""].argmax(1).tolist() == [2, 2] and torch.equal(before[""], after[""])


@every_norm
@pytest.mark.parametrize("block", [RepVggBlock, MobileOneBlock])
def test_timms_reparameterization_gives_the_same_function_with_bn_and_is_refused_by_name_otherwise(name, block):
    model = replace_norm(nn.Sequential(block(8, 8)), name)
    model(images(4, 8, 6, 6))
    model, x = pickle.loads(pickle.dumps(model.eval())), images(2, 8, 6, 6)
    if name == "bn":
        torch.testing.assert_close(reparameterize_model(model)(x), model(x), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(ValueError, match=rf"0\.reparameterize\(\): .*not {NORMALIZERS[name].__name__}"):
        reparameterize_model(model)


def test_fused_layers_keep_their_keys_activation_and_attributes_through_compilation_and_pickle():
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6, act_layer=nn.PReLU, eps=1e-3)))
    warm = replace_norm(copy.deepcopy(model), "en")
    assert model.state_dict().keys() <= warm.state_dict().keys()
    layer, x = warm[1], images(2, 6, 4, 4)
    assert layer.num_features == len(layer.running_mean) == 6 and layer.eps == 1e-3
    torch.testing.assert_close(layer(x), model[1].act(layer.plain(x)))
    expected = warm(PHOTOS)
    assert torch.equal(pickle.loads(pickle.dumps(warm))(PHOTOS), expected)
    torch.testing.assert_close(torch.compile(warm, fullgraph=True, backend="eager")(PHOTOS), expected)
    expected.square().sum().backward()
    assert layer.act.weight.grad.abs().sum() > 0


# ---- what other libraries do to batch normalization ----

CONVERSIONS = [
    nn.SyncBatchNorm.convert_sync_batchnorm,
    convert_sync_batchnorm,
    convert_splitbn_model,
    freeze_batch_norm_2d,
]


@every_running
@pytest.mark.parametrize("convert", CONVERSIONS, ids=lambda convert: convert.__name__)
def test_conversions_to_another_kind_of_bn_keep_bns_state_and_refuse_the_others_by_name(name, convert):
    model = replace_norm(trained(network()), name)
    if name != "bn":
        with pytest.raises(ValueError, match=rf"{NORMALIZERS[name].__name__} .*en\.norm\.convert_sync.*freeze"):
            convert(model)
        return
    converted = convert(copy.deepcopy(model))
    assert not [layer for layer in converted.modules() if isinstance(layer, Normalizer)]
    state = converted.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items() if key in state)


@every_running
def test_torch_does_not_fuse_a_normalizer_into_the_convolution_before_it(name):
    with pytest.raises(AssertionError, match="did not find fuser"):
        torch.ao.quantization.fuse_modules(replace_norm(trained(network()), name), [["0", "1"]])


@every_running
def test_averages_taken_anew_are_those_of_torchs_update_bn_where_nothing_drops_out(name):
    model = replace_norm(trained(network()), name)
    model[5].p = 0.0
    loader = [(images(4, 3, 9, 9, seed=seed), seed) for seed in range(3)]
    theirs, ours = copy.deepcopy(model), model
    update_bn(loader, theirs)
    ours[0].train()
    assert update_statistics(ours, loader) == 3
    assert [layer.training for layer in ours] == [True] + [False] * 5
    before = trained(network()).state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
        assert "running" not in key or not torch.equal(value, before[key])


def test_averages_taken_anew_are_plain_averages_also_of_torchs_own_layers_and_survive_a_failure():
    model = replace_norm(network(), "en", skip="1")
    batches = [images(4, 3, 9, 9, seed=seed) for seed in range(5)]
    update_statistics(model, batches)
    means = torch.stack([model[0](batch).mean((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(model[1].running_mean, means.mean(0))
    assert model[4].num_batches_tracked == 5 and model[4].momentum == 0.1
    before = copy.deepcopy(model.state_dict())
    for broken, error in (([], ValueError), ([batches[0], "no tensor"], TypeError)):
        with pytest.raises(error):
            update_statistics(model, broken)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert model.training and model[4].momentum == 0.1


@every_running
def test_a_layer_that_is_told_not_to_track_or_loses_its_averages_takes_the_batchs_statistics(name):
    layer, x = randomized(name, 6), images(3, 6, 4, 4)
    expected, before = copy.deepcopy(layer)(x), copy.deepcopy(layer.state_dict())
    layer.track_running_stats = False  # what Lightning's BaseFinetuning.freeze does
    torch.testing.assert_close(layer(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    without = torch.func.replace_all_batch_norm_modules_(randomized(name, 6))
    for mode in (True, False):
        torch.testing.assert_close(without.train(mode)(x), expected)


@every_running
def test_a_loop_over_bn_layers_that_freezes_them_freezes_the_normalizers(name):
    model = replace_norm(trained(network()), name).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    before = copy.deepcopy(model.state_dict())
    model(PHOTOS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_norm
def test_frozen_normalizers_stay_in_evaluation_and_do_not_learn_until_they_are_let_again(name):
    model = replace_norm(trained(network()), name)
    freeze(model)
    model, before = copy.deepcopy(model).train(), copy.deepcopy(model.state_dict())
    model(PHOTOS).sum().backward()
    update_statistics(model, [PHOTOS])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "0.weight", "0.bias", "3.weight", "3.bias"
    }  # fmt: skip
    unfreeze(model)
    assert model[1].training and all(p.requires_grad for p in model.parameters())


def test_what_did_not_learn_before_freezing_does_not_learn_after():
    model = replace_norm(network(), "en")
    model[1].weight.requires_grad_(False)
    freeze(model)
    freeze(model)
    unfreeze(model)
    unfreeze(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["1.weight"]
    with pytest.raises(ValueError, match="no normalizer"):
        freeze(network())


@every_norm
def test_a_library_that_decays_whatever_has_two_axes_leaves_every_weight_and_bias_of_a_normalizer_out(name):
    model = replace_norm(network(), name)
    spared, decayed = ({id(p) for p in group["params"]} for group in param_groups_weight_decay(model, 0.1))
    layers = [layer for layer in model.modules() if isinstance(layer, Normalizer)]
    affine = {id(p) for layer in layers for p in (layer.weight, layer.bias)}
    assert affine and affine <= spared and not affine & decayed
    ours = param_groups(model, 0.1)
    assert [group["weight_decay"] for group in ours] == [0.1, 0.0]
    assert {id(p) for p in ours[0]["params"]} == {id(model[0].weight), id(model[3].weight)}


# ---- how libraries make layers, and change them ----


@every_norm
def test_a_layer_made_on_the_meta_device_and_reset_is_what_its_constructor_makes(name):
    layer = nn.utils.skip_init(NORMALIZERS[name], 64, dtype=torch.float64)
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    expected = NORMALIZERS[name](64, dtype=torch.float64)
    assert layer.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in layer.state_dict().items())
    with pytest.raises(ValueError, match="option 'device'"):
        build_norm(name, 64, device="cpu")


@every_norm
def test_libraries_take_a_normalizer_as_their_norm_layer(name):
    norm_layer = functools.partial(NORMALIZERS[name], eps=1e-3)
    for model in (resnet18(norm_layer=norm_layer), timm.create_model("resnet10t", norm_layer=norm_layer)):
        counts = Counter(type(layer) for layer in model.modules())
        assert counts[NORMALIZERS[name]] > 10 and not counts[nn.BatchNorm2d]


def test_what_does_not_learn_stays_so_and_hooks_that_are_lost_are_warned_of():
    model = network()
    model[1].requires_grad_(False)
    model[4].weight.requires_grad_(False)
    model[1].register_state_dict_post_hook(lambda *_: None)
    model[4].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hooks are lost .*: 1, 4$"):
        replace_norm(model, "en")
    assert not any(p.requires_grad for p in model[1].parameters())
    assert [name for name, p in model[4].named_parameters() if not p.requires_grad] == ["weight"]


def test_a_layer_that_shares_a_parameter_is_refused_before_anything_is_replaced():
    model = network()
    model[4].weight = model[1].weight
    with pytest.raises(ValueError, match=r"^1 and 4 share a parameter: expected"):
        replace_norm(model, "en")
    assert type(model[1]) is nn.BatchNorm2d
    assert isinstance(replace_norm(nn.Sequential(model[1], model[1]), "en")[1], Normalizer)


def test_running_averages_keep_a_precision_that_the_weights_do_not_have():
    model = network().half()
    model[1].running_mean = model[1].running_mean.float() + 1e-4
    replace_norm(model, "en")
    assert model[1].weight.dtype == torch.float16 and model[1].running_var.dtype == torch.float16
    assert torch.equal(model[1].running_mean, torch.full_like(model[1].running_mean, 1e-4, dtype=torch.float32))


def test_patterns_choose_what_is_replaced_and_bn_of_vectors_stays():
    def make() -> nn.Module:
        pair = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
        return nn.ModuleDict({"a": pair, "b": nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4))})

    def places(model: nn.Module) -> list[str]:
        return [place for place, layer in model.named_modules() if isinstance(layer, Normalizer)]

    assert places(replace_norm(make(), "en", skip="a.1")) == ["a.0", "b.0"]
    assert places(replace_norm(make(), "en", only=["a.0"])) == ["a.0"]
    assert places(replace_norm(make(), "en", only="*.?", skip=["a.*"])) == ["b.0"]
    for patterns, words in (({"only": "c.*"}, r"only='c\.\*'"), ({"skip": "b.1"}, r"skip='b\.1'"), ({}, "a.1 is a")):
        with pytest.raises(ValueError, match=words):
            replace_norm(make(), "en", **patterns)


def test_a_copy_or_file_made_while_ratios_are_recorded_does_not_record():
    model = nn.Sequential(randomized("en", 6))
    with record_ratios(model) as record:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for twin in copies:
            twin(images(2, 6, 4, 4))
        assert not record
        model(images(2, 6, 4, 4))
    assert record["0"].shape == (2, 3) and isinstance(copies[0][0], ExemplarNorm2d)


# ---- several ranks: tests/sync_worker.py has the statistics ----


def test_layers_in_place_of_synchronized_ones_are_synchronized_and_others_become_so():
    model = replace_norm(nn.SyncBatchNorm.convert_sync_batchnorm(network()), "en")
    assert model[1].sync and model[4].sync
    mixed = replace_norm(network(), "sn", skip="1")
    convert_sync(mixed)
    assert isinstance(mixed[1], nn.SyncBatchNorm) and mixed[4].sync
    for wrong, words in ((timm.create_model("test_efficientnet"), "bn1 is a BatchNormAct2d"), (nn.ReLU(), "no batch")):
        with pytest.raises(ValueError, match=words):
            convert_sync(wrong)


def test_a_batch_normalization_without_a_bias_is_refused_by_its_place_and_nothing_is_replaced():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].register_parameter("bias", None)
    with pytest.raises(ValueError, match=r"^1 is a BatchNorm2d whose bias is no parameter of its own"):
        replace_norm(model, "en")
    assert all(type(layer) is nn.BatchNorm2d for layer in model)


def test_a_layer_in_two_places_is_chosen_by_either():
    shared = nn.BatchNorm2d(4)
    model = nn.ModuleDict(
        {"a": nn.Sequential(shared), "b": nn.Sequential(shared), "c": nn.Sequential(nn.BatchNorm2d(4))}
    )
    replace_norm(model, "gn", only="b.*")
    assert model["a"][0] is model["b"][0] and type(model["a"][0]) is not nn.BatchNorm2d
    assert type(model["c"][0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "value", [np.ones(4, "f4"), torch.ones(4).to_sparse(), torch.ones(4, device="meta"), 3.0], ids=type
)
def test_a_state_dict_with_what_is_no_tensor_is_refused_by_key_and_changes_nothing(value):
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)), "en")
    state = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)).state_dict()
    before = {key: part.clone() for key, part in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^2\.bias is a "):
        load_batch_norm(model, {**state, "2.bias": value})
    assert all(torch.equal(part, before[key]) for key, part in model.state_dict().items())


def test_dropout_within_a_normalizer_rests_while_statistics_are_taken_anew():
    layer = build_norm("en", 4)
    seen = []
    layer.gate[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    update_statistics(nn.Sequential(layer), [torch.randn(2, 4, 5, 5)])
    assert seen == [False] and layer.training


@pytest.mark.parametrize("name", ["sn", "en"])
def test_eps_is_a_number_to_all_but_those_who_fold(name):
    layer, x = build_norm(name, 4), torch.randn(4)
    torch.testing.assert_close(torch.add(x, other=layer.eps), x + 1e-5)
    assert torch.equal(layer.running_var.clamp(min=layer.eps), layer.running_var)
    assert not (layer.running_var < layer.eps).any()
    assert type(pickle.loads(pickle.dumps(layer.eps))) is float and type(copy.deepcopy(layer.eps)) is float
    assert torch.equal(torch.compile(lambda t: t + layer.eps, backend="eager", fullgraph=True)(x), x + 1e-5)
    with pytest.raises(ValueError, match="added_eps"):
        layer.running_var + layer.eps
    with pytest.raises(ValueError, match=r"^eps="):
        layer.eps = -1.0


def test_a_layer_of_one_normalizer_records_its_ratios_in_evaluation_too():
    layer = build_norm("en", 4, normalizers=["bn"], mix="statistics").eval()
    with record_ratios(nn.Sequential(layer)) as record:
        layer(torch.randn(3, 4, 5, 5))
    assert torch.equal(record["0"], torch.ones(3, 1))


def test_timms_muon_takes_convolutions_alone_where_its_groups_say_so():
    model = replace_norm(network(), "en")
    groups = [{**group, "use_muon": group["weight_decay"] > 0} for group in param_groups(model, 0.05)]
    optimizer = create_optimizer_v2(groups, opt="muon", lr=0.01)
    model(PHOTOS).square().sum().backward()
    optimizer.step()
    taken = {name for name, part in model.named_parameters() if "momentum_buffer" in optimizer.state[part]}
    assert taken == {"0.weight", "3.weight"}
