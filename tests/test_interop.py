"""The normalizers in networks and scripts of other people, by those libraries' own functions."""

import copy
import pickle

import pytest
import torch
from norm_cases import PHOTOS, every_norm, images, network, randomized, trained
from timm.layers import BatchNormAct2d, convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.optim.swa_utils import update_bn

from en.norm import (
    NORMALIZERS,
    Normalizer,
    build_norm,
    convert_sync,
    freeze,
    param_groups,
    record_ratios,
    replace_norm,
    unfreeze,
    update_statistics,
)
from en.norm.pretrained import AVERAGES

every_running = pytest.mark.parametrize("name", ["bn", "sn", "en"])


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
    assert all(torch.equal(layer.get_buffer(name), before[name]) for name in AVERAGES)
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
        freeze(nn.Linear(3, 3))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_freezing_holds_batch_normalization_that_was_left_in_its_place_too(copied):
    model = replace_norm(trained(network()), "en", only="1")
    assert type(model[4]) is nn.BatchNorm2d
    model.train()
    freeze(model)
    frozen = copied(model)
    for each in (model, frozen):
        before = copy.deepcopy(each.state_dict())
        each.train()(PHOTOS).sum().backward()
        assert update_statistics(each, [PHOTOS]) == 1
        assert not each[1].training and not each[4].training and each[5].training
        assert all(torch.equal(value, before[name]) for name, value in each.state_dict().items())
        assert {name for name, part in each.named_parameters() if part.grad is not None} == {
            "0.weight", "0.bias", "3.weight", "3.bias",
        }  # fmt: skip
        unfreeze(each)
        each.zero_grad()
        each(PHOTOS).sum().backward()
        assert all(part.grad is not None for part in each.parameters())
        assert not torch.equal(each[4].running_mean, before["4.running_mean"]) and each[4].train is not None
        each.eval()
        assert not each[4].training


@pytest.mark.parametrize("change", [convert_sync, lambda model: replace_norm(model, "en")], ids=["sync", "replace"])
def test_a_frozen_batch_normalization_stays_frozen_in_another_form_and_learns_again_after(change):
    model = trained(network())
    freeze(model)
    model = change(model).train()
    assert not model[1].training and not any(part.requires_grad for part in model[1].parameters())
    unfreeze(model)
    assert model[1].training and all(part.requires_grad for part in model[1].parameters())


def test_a_fused_layer_that_is_frozen_evaluates_its_dropout_with_the_network():
    layer = BatchNormAct2d(6, drop_layer=nn.Dropout)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), layer)
    freeze(model.train())
    assert not model.eval()[1].drop.training and model.train()[1].drop.training


@every_running
def test_a_layer_whose_averages_were_taken_away_uses_the_batch_as_torchs_own_does(name):
    """running_mean = running_var = None is how test-time adaptation switches averages off."""
    torchs = trained(network())
    model = replace_norm(copy.deepcopy(torchs), name)
    for each in (model, torchs):
        for layer in each.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = layer.running_var = None
    expected = copy.deepcopy(model).train()[:2](PHOTOS)
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)[:2](PHOTOS), expected)
        torch.compile(model, backend="aot_eager", fullgraph=True)(PHOTOS)
        if name == "bn":
            torch.testing.assert_close(model[:5](PHOTOS), torchs.train(mode)[:5](PHOTOS))
    model.num_batches_tracked = None
    assert update_statistics(model, [PHOTOS]) == 1
    with pytest.raises(ValueError, match="without running statistics"):
        replace_norm(torchs, name)


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
