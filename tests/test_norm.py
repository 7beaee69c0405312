"""Every normalizer of the registry, and every variant of EN, against the literal formulas and torch's own layers."""

import copy

import pytest
import torch
from literal import literal_forward
from norm_cases import every_case, every_form, every_norm, images, randomized
from torch import Tensor, nn

from en.norm import ExemplarNorm2d, Normalizer, SwitchableNorm2d, build_norm, record_ratios, update_statistics
from en.norm.exemplar import reduced_channels


@every_case
@every_form
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_and_gradients_equal_the_literal_formula_in_float64(case, training, form):
    name, options = case
    layer = randomized(name, 6, **options).double().train(training)
    x = images(3, 6, 4, 5, dtype=torch.float64).requires_grad_()
    weights = images(3, 6, 4, 5, seed=2, dtype=torch.float64)
    expected = literal_forward(name, layer, x)
    inputs = [x, *layer.parameters()]
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    actual = layer(x)
    grads = torch.autograd.grad((actual * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck_passes_for_input_and_parameters(case, training):
    name, options = case
    small = {"groups": 2} if "groups" in options else {}
    small |= {"hidden": 2} if name == "en" else {}
    layer = randomized(name, 4, **{**options, **small}).double().train(training)
    x = images(2, 4, 2, 3, dtype=torch.float64).requires_grad_()

    def run(x: Tensor, *values: Tensor) -> Tensor:
        fresh = copy.deepcopy(layer)
        return torch.func.functional_call(fresh, dict(zip(dict(layer.named_parameters()), values, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), atol=1e-6, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("kind", ["bn", "sn", "en"])
def test_one_hot_ratios_equal_the_library_layers_running_buffers_included(kind, training, momentum):
    for k, reference in enumerate(
        [nn.BatchNorm2d(6, momentum=momentum), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(1, 6)]
    ):
        layer = build_norm(kind, 6, momentum=momentum, **({} if kind == "bn" else {"min_pixels": 1}))
        force_one_hot(layer, k)
        with torch.no_grad():
            reference.weight.copy_(torch.randn(6))
            reference.bias.copy_(torch.randn(6))
            (layer.weight_rows[k] if kind == "en" else layer.weight).copy_(reference.weight)
            (layer.bias_rows[k] if kind == "en" else layer.bias).copy_(reference.bias)
        for step in range(3):
            x = images(4, 6, 5, 5, seed=step)
            torch.testing.assert_close(layer.train()(x), reference.train()(x), rtol=1e-4, atol=1e-5)
        layer.train(training), reference.train(training)
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-5)
        if k == 0:
            for buffer_name, buffer in reference.named_buffers():
                torch.testing.assert_close(layer.get_buffer(buffer_name), buffer)
        if kind == "bn":
            return


def force_one_hot(layer: Normalizer, k: int) -> None:
    with torch.no_grad():
        if isinstance(layer, ExemplarNorm2d):
            layer.gate[2].bias[k] = 200.0
        elif isinstance(layer, SwitchableNorm2d):
            layer.mean_weight[k] = layer.var_weight[k] = 200.0


@every_case
@every_form
def test_statistics_are_finite_and_accurate_at_the_edges(case, form):
    name, options = case
    edges = {
        "one sample": images(1, 6, 4, 4),
        "one pixel": images(4, 6, 1, 1),
        "one value": images(1, 6, 1, 1),  # in evaluation: see below
        "constant": torch.full((3, 6, 4, 4), 2.5),
        "huge mean": 1e4 + images(3, 6, 8, 8, seed=3),
        "tiny": 1e-6 * images(3, 6, 8, 8, seed=4),
    }
    for edge, x in edges.items():
        layer = randomized(name, 6, **options).train(edge != "one value")
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all(), edge
        exact = copy.deepcopy(layer).double()
        expected = literal_forward(name, exact, x.detach().double())
        # float32 holds 1e4 +- 1 in steps of 1e-3: a mean is known to half of that and an output to a few times more
        tolerance = 2e-2 if edge == "huge mean" else 1e-3
        torch.testing.assert_close(
            y.double(), expected, rtol=tolerance, atol=tolerance, msg=lambda m, e=edge: f"{e}: {m}"
        )
        buffers = [b for b in layer.buffers() if b.is_floating_point()]
        assert all(torch.isfinite(b).all() for b in buffers), edge


@every_case
@every_form
def test_one_value_per_channel_in_training_is_refused_where_batch_statistics_are_taken(case, form):
    """Their variance would be 0, and so would, after some batches, be the running average: torch refuses, too."""
    layer = randomized(case[0], 6, **case[1])
    layer.place = "layer4.bn1"
    before, x = copy.deepcopy(layer.state_dict()), images(1, 6, 1, 1)
    if not getattr(layer, "of_batches", False):
        assert layer(x).isfinite().all()
        return
    calls = [layer, layer.plain]
    if not case[1]:
        calls.append(torch.compile(layer, backend="aot_eager"))
    for call in calls:
        with pytest.raises(ValueError, match=r"layer4.bn1, \w+Norm2d of 6 channels: .*sync"):
            call(x)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(ValueError, match="one value per channel"):
        update_statistics(layer, [images(2, 6, 3, 3), x])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    for shape in [(1, 6, 1, 2), (2, 6, 1, 1)]:
        assert copy.deepcopy(layer)(images(*shape)).isfinite().all()


@every_case
def test_deepcopy_and_state_dict_round_trip_give_the_same_function(case):
    name, options = case
    layer, x = randomized(name, 6, **options), images(2, 6, 3, 3)
    fresh = randomized(name, 6, seed=1, **options)
    fresh.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    y = layer(x)
    assert torch.equal(y, fresh(x)) and torch.equal(y, twin(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), fresh.buffers(), strict=True))


@every_norm
def test_an_empty_batch_passes_in_evaluation(name):
    assert build_norm(name, 6).eval()(torch.empty(0, 6, 4, 4)).shape == (0, 6, 4, 4)


@every_case
@every_form
def test_an_empty_batch_in_training_changes_no_running_average_and_gives_no_gradient(case, form):
    name, options = case
    layer, x = randomized(name, 6, **options), torch.empty(0, 6, 4, 4, requires_grad=True)
    before = copy.deepcopy(dict(layer.named_buffers()))
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 6, 4, 4)
    averages = [key for key in before if not key.startswith("trained_")]  # which tell of the training
    assert all(torch.equal(layer.get_buffer(key), before[key]) for key in averages)
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in layer.parameters())


@every_norm
def test_an_input_of_another_shape_is_refused(name):
    for shape in [(2, 5, 4, 4), (2, 6, 4), (6,), (2, 6, 0, 4)]:
        with pytest.raises(ValueError, match="expected"):
            build_norm(name, 6)(torch.zeros(shape))


@every_norm
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_an_input_that_is_not_of_a_floating_point_type_is_refused_by_name(name, dtype):
    with pytest.raises(ValueError, match=f"^input of type {dtype}: expected a floating-point type$"):
        build_norm(name, 6)(torch.zeros(2, 6, 4, 4, dtype=dtype))


@every_norm
@every_form
def test_a_layer_is_computed_where_it_lies_whatever_device_new_tensors_go_to(name, form):
    layer, x = randomized(name, 6), images(2, 6, 4, 4).requires_grad_()
    expected = copy.deepcopy(layer)(x)
    with torch.device("meta"):
        y = layer(x)
        y.sum().backward()
    assert torch.equal(y, expected) and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("xn", {}, ["xn", "bn"]),
        ("bnn", {}, ["bnn", "did you mean"]),
        ("en", {"reducton": 4}, ["reducton", "did you mean 'reduction'"]),
        ("en", {"reduction": 0}, ["reduction=0"]),
        ("en", {"hidden": 2.5}, ["hidden=2.5"]),
        ("en", {"normalizers": []}, ["normalizers"]),
        ("en", {"normalizers": ["bn", "bn"]}, ["normalizers", "different"]),
        ("sn", {"normalizers": "bn"}, ["normalizers"]),
        ("en", {"normalizers": ["bn", "wn"]}, ["wn", "bn, in, ln, gn"]),
        ("en", {"activation": "gelu"}, ["activation", "tanh"]),
        ("en", {"ratios": "learned"}, ["ratios", "static"]),
        ("en", {"mix": "all"}, ["mix", "statistics"]),
        ("en", {"shared_affine": 1}, ["shared_affine"]),
        ("gn", {"groups": 5}, ["groups=5", "6 channels"]),
        ("bn", {"momentum": 2}, ["momentum=2"]),
        ("in", {"eps": 0}, ["eps=0"]),
        ("in", {"sync": True}, ["sync"]),
        ("bn", {"sync": "yes"}, ["sync"]),
    ],
)
def test_a_bad_option_is_a_value_error_that_names_it(name, options, words):
    with pytest.raises(ValueError, match=".*".join(["", *words]).replace("(", r"\(")):
        build_norm(name, 6, **options)


def test_num_features_must_be_a_positive_whole_number():
    for bad in (0, -3, 2.0, True, "6"):
        with pytest.raises(ValueError, match="num_features"):
            build_norm("en", bad)


def test_parameter_names_and_shapes_of_en_are_those_of_the_contract():
    state = {name: tuple(value.shape) for name, value in build_norm("en", 64).state_dict().items()}
    assert len(state.pop("_extra_state")) == 1  # the options, as bytes
    assert state == {
        "weight": (192,), "bias": (192,), "reduce.weight": (2, 32, 1),
        "gate.0.weight": (150, 9), "gate.0.bias": (150,), "gate.2.weight": (3, 150), "gate.2.bias": (3,),
        "running_mean": (64,), "running_var": (64,), "num_batches_tracked": (), "trained_pixels": (),
    }  # fmt: skip
    assert [name for name, _ in build_norm("en", 64, normalizers=["in", "ln"]).named_buffers()] == ["trained_pixels"]


@pytest.mark.parametrize("reduction", [1, 2, 16, 32, 1000])
@pytest.mark.parametrize("channels", [24, 58, 116, 122, 232, 64, 2048, 7])
def test_the_convolution_has_exactly_as_many_weights_as_channels(channels, reduction):
    groups = reduced_channels(channels, reduction)
    assert channels % groups == 0 and groups <= max(1, channels // reduction)
    assert build_norm("en", channels, reduction=reduction).get_parameter("reduce.weight").numel() == channels


def test_every_ratio_starts_at_one_over_k_and_the_instance_row_of_v_is_zero():
    layer = build_norm("en", 6)
    with record_ratios(layer) as record:
        layer(images(4, 6, 9, 9))
    torch.testing.assert_close(record[""], torch.full((4, 3), 1 / 3))
    mean, var = images(4, 6, 1, 1)[:, :, 0, 0], torch.ones(4, 6)
    offsets, _ = layer.statistics(mean, var, 1)
    assert not offsets[:, 1].any() and offsets[:, 0].any()


@pytest.mark.parametrize("options", [{}, {"ratios": "static"}, {"ratios": "pooled"}], ids=str)
def test_in_has_no_ratio_on_maps_of_fewer_pixels_than_min_pixels(options):
    layer = randomized("en", 6, min_pixels=20, **options).eval()
    for side, takes_part in ((4, False), (5, True)):
        with record_ratios(nn.Sequential(layer)) as record:
            layer(images(3, 6, 4, side))
        assert torch.all((record["0"][:, 1] > 0) == takes_part)
        torch.testing.assert_close(record["0"].sum(1), torch.ones(3))


@pytest.mark.parametrize("ratios", ["correlation", "pooled"])
@pytest.mark.parametrize("hidden", [7, 50])
def test_below_gate_pixels_a_step_moves_a_logit_through_the_hidden_units_no_farther_than_through_the_bias(
    ratios, hidden
):
    layer = randomized("en", 6, ratios=ratios, hidden=hidden).double()
    samples = 30 * images(3, 6, 1, 1, dtype=torch.float64)[:, :, 0, 0]
    inputs = samples if ratios == "pooled" else samples[:, :3, None] * samples[:, None, :3]
    for pixels, farthest in ((4, 1.0), (5, 3.0 * hidden)):
        logit = layer.gate_logits(inputs.flatten(1), pixels)[0, 0]
        grads = torch.autograd.grad(logit, [layer.gate[2].weight, layer.gate[2].bias])
        through_units, through_bias = (grad.square().sum().item() for grad in grads)  # of a step of SGD at rate 1
        assert through_bias == 1 and 0.5 * farthest < through_units <= farthest


def test_record_ratios_collects_every_layer_and_every_pass_and_then_stops():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), randomized("en", 6), nn.ReLU(), randomized("en", 6, normalizers=["bn", "ln"])
    )
    with record_ratios(model) as record:
        first = model(images(2, 3, 4, 4))
        model(images(5, 3, 4, 4, seed=9))
    model(images(2, 3, 4, 4))
    assert {name: tuple(ratios.shape) for name, ratios in record.items()} == {"1": (7, 3), "3": (7, 2)}
    for ratios in record.values():
        torch.testing.assert_close(ratios.sum(1), torch.ones(7))
        assert not ratios.requires_grad and ratios.std(0).max() > 0
    assert first.requires_grad


def test_recalibration_with_momentum_none_averages_all_batches():
    layer = build_norm("en", 6, momentum=None)
    batches = [images(4, 6, 3, 3, seed=s) for s in range(5)]
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
