"""The normalizers put into networks, by this package and by those that make them."""

import copy
import functools
import itertools
import pickle
from collections import Counter

import pytest
import timm
import torch
from norm_cases import every_norm, images, network, randomized
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from en.norm import (
    NORMALIZERS,
    ExemplarNorm2d,
    Normalizer,
    build_norm,
    convert_sync,
    record_ratios,
    replace_norm,
)


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


SETS = [list(names) for size in range(1, 5) for names in itertools.combinations(("bn", "in", "ln", "gn"), size)]


@pytest.mark.parametrize("normalizers", SETS, ids="-".join)
@pytest.mark.parametrize("name", ["sn", "ssn", "en"])
def test_every_set_of_normalizers_of_a_mixture_goes_into_a_network_and_trains(name, normalizers):
    model = replace_norm(network(), name, normalizers=normalizers)
    model(images(2, 3, 16, 16)).sum().backward()
    assert all(part.grad is not None for part in model.parameters())
    assert model.eval()(images(1, 3, 16, 16)).isfinite().all()
    averages = {key for key in model.state_dict() if "running_" in key}
    assert len(averages) == (4 if "bn" in normalizers else 0)
    twin = replace_norm(network(), name, normalizers=normalizers).eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(images(1, 3, 16, 16)), model(images(1, 3, 16, 16)))


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")  # of FSDP's own
@pytest.mark.parametrize("holder", ["DistributedDataParallel", "inside another module", "fully_shard"])
def test_a_network_whose_parameters_are_held_already_is_refused(one_rank, holder):
    """Nobody would average the gradients of the layers that come: ranks would drift apart without a word."""
    model = network()
    if holder == "fully_shard":
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    else:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    model = nn.Sequential(model) if holder == "inside another module" else model
    kinds = [type(layer) for layer in model.modules()]
    with pytest.raises(ValueError, match="replace first, then wrap"):
        replace_norm(model, "en")
    assert [type(layer) for layer in model.modules()] == kinds


def test_a_network_without_batch_normalization_of_images_says_what_it_has_instead():
    replaced = replace_norm(network(), "en")
    with pytest.raises(ValueError, match="it has 2 ExemplarNorm2d already"):
        replace_norm(replaced, "sn")
    with pytest.raises(ValueError, match=r"it has 1 BatchNorm1d, .* expected nn\.BatchNorm2d"):
        replace_norm(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), "en")
    with pytest.raises(ValueError, match=r"Sequential has no batch normalization to replace$"):
        replace_norm(nn.Sequential(nn.Linear(3, 6)), "en")
