"""SSN: its ratios against their definition, how they become sparse, and what a sparse layer costs."""

import copy
import itertools

import pytest
import torch
from literal import literal_sparsest
from norm_cases import every_form, images, randomized
from torch import nn

from en.norm import build_norm, kernels, replace_norm
from en.norm.sparse import sparsest, sparsestmax


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_ratios_are_the_nearest_at_the_radius_by_either_way_of_computing_them(k):
    generator = torch.Generator().manual_seed(k)
    for number in range(120):
        spread, radius = (0.05, 0.3, 1.0)[number % 3], torch.rand((), generator=generator, dtype=torch.float64)
        weights = 1 + spread * torch.randn(k, generator=generator, dtype=torch.float64)
        expected = literal_sparsest(weights, radius.item())
        torch.testing.assert_close(sparsestmax(weights[None], radius)[0], expected)
        torch.testing.assert_close(weights.new_tensor(sparsest(tuple(weights.tolist()), radius.item())[0]), expected)
        assert torch.isclose(expected.sum(), torch.ones(()).double())


def trained(layer, batches, training=True):
    layer.train(training)
    for seed in range(batches):
        layer(images(4, 6, 3, 3, seed=seed))
    return layer


@pytest.mark.parametrize("normalizers", [["bn", "in", "ln"], ["in", "ln"], ["bn", "in", "ln", "gn"]], ids="-".join)
def test_every_ratio_is_0_or_1_once_the_radius_has_grown(normalizers):
    layer = build_norm("ssn", 6, steps=10, normalizers=normalizers)
    with torch.no_grad():
        layer.mean_weight += 1e-3 * torch.randn(len(normalizers), generator=torch.Generator().manual_seed(0))
        layer.var_weight += 1e-3 * torch.randn(len(normalizers), generator=torch.Generator().manual_seed(1))
    spread = [trained(layer, 1).ratios(torch.float32).amax(1) for _ in range(10)]
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(spread))
    assert (spread[0] < 0.6).all() and torch.equal(spread[-1], torch.ones(2))
    layer(images(2, 6, 3, 3)).square().sum().backward()
    assert not layer.mean_weight.grad.any() and not layer.var_weight.grad.any()


def test_only_training_with_gradients_is_counted_and_taking_the_averages_anew_does_not_start_it_again():
    layer = trained(build_norm("ssn", 6), 3)
    trained(layer, 2, training=False)
    layer.train()
    with torch.no_grad():
        layer(images(4, 6, 3, 3))
    layer.reset_running_stats()
    assert layer.trained_batches == 3 and layer.num_batches_tracked == 0


def test_a_resumed_layer_goes_on_to_the_bit():
    layer = trained(randomized("ssn", 6, steps=600_000), 2)
    fresh = build_norm("ssn", 6, steps=600_000)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = images(4, 6, 3, 3, seed=9)
    assert torch.equal(layer(x), fresh(x)) and torch.equal(layer(x), fresh(x))


@pytest.mark.parametrize("kept", ["bn", "in", "ln", "gn"])
def test_a_layer_that_has_chosen_computes_what_it_has_chosen_and_nothing_else(kept):
    names = ["bn", "in", "ln", "gn"]
    layer = randomized("ssn", 6, normalizers=names, steps=100).eval()
    with torch.no_grad():
        for weights in (layer.mean_weight, layer.var_weight):
            weights.fill_(0)[names.index(kept)] = 0.1
    x = images(3, 6, 4, 5)
    singles = {"bn": nn.BatchNorm2d(6), "in": nn.InstanceNorm2d(6, affine=True), "ln": nn.GroupNorm(1, 6)}
    single = singles.get(kept, nn.GroupNorm(2, 6))
    state = layer.state_dict()
    single.load_state_dict({name: state[name] for name in single.state_dict()})
    plan = layer.native_plan(pixels=20)
    assert plan.normalizers == (kept,) and plan.is_batch_norm == (kept == "bn")
    torch.testing.assert_close(layer(x), single.eval()(x), rtol=1e-4, atol=1e-5)
    if kept == "bn":
        assert torch.equal(layer(x), single(x))  # the same kernel


def test_a_network_whose_layers_chose_bn_runs_torchs_kernel_in_evaluation_alone():
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)), "ssn", steps=1)
    with torch.no_grad():
        model[1].mean_weight[0] = model[1].var_weight[0] = 2
    assert kernels.native_parts() == "layers"
    names = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        model.eval()(images(2, 3, 4, 4))
    names = [event.name for event in seen.events()]
    assert "aten::batch_norm" in names and not [name for name in names if name.startswith("en_norm")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_form
def test_weights_that_are_not_finite_give_an_output_that_is_not(value, form):
    """So that the loss shows it, which a training run looks at; EN and SN give the same."""
    layer = randomized("ssn", 6)
    with torch.no_grad():
        layer.mean_weight.fill_(value)
    for training in (True, False):
        assert layer.train(training)(images(2, 6, 4, 4)).isnan().any()
