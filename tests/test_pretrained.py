"""What networks trained with batch normalization have learned, taken over by the normalizers."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from norm_cases import PHOTOS, every_norm, images, network, trained
from timm.layers import BatchNormAct2d
from timm.models.byobnet import MobileOneBlock, RepVggBlock
from timm.utils import reparameterize_model
from torch import nn

from en.norm import (
    NORMALIZERS,
    RunningNormalizer,
    build_norm,
    combined,
    load_batch_norm,
    record_ratios,
    replace_norm,
)


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


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model)


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, averaged, lambda model: nn.ModuleDict({"net": model})]
)
def test_keys_that_a_wrapper_has_put_a_prefix_before_are_refused_with_the_prefix_on_either_side(wrap):
    plain, model = network(), replace_norm(network(), "en")
    wrapped = wrap(network()).state_dict()
    prefix = next(name for name in wrapped if name.endswith("0.weight")).removesuffix("0.weight")
    with pytest.raises(ValueError, match=rf"^{prefix}.* in the state_dict: expected .* has put '{prefix}' in front"):
        load_batch_norm(model, wrapped)
    with pytest.raises(ValueError, match=rf"^{prefix}.* in the model: expected .* has put '{prefix}' in front"):
        load_batch_norm(wrap(model), plain.state_dict())
    load_batch_norm(
        model, {name.removeprefix(prefix): value for name, value in wrapped.items() if name != "n_averaged"}
    )


def test_a_checkpoint_around_a_state_dict_is_refused_with_the_key_that_holds_it():
    with pytest.raises(ValueError, match="under 'state_dict': expected that one"):
        load_batch_norm(replace_norm(network(), "en"), {"epoch": 3, "state_dict": network().state_dict()})


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


@pytest.mark.parametrize("name", ["sn", "en"])
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
