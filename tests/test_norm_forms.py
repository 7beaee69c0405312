"""Each normalizer's forms, as C++ layers, as C++ passes and in torch's operations, against its plain form."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT
from literal import literal_forward
from norm_cases import every_case, every_form, every_norm, images, parent_and_child, randomized

SHAPES = [(2, 3, 5, 5), (3, 16, 7, 7), (2, 24, 9, 40), (5, 58, 1, 1), (3, 70, 2, 2), (2, 130, 18, 19), (5, 6, 1, 300)]


@every_norm
@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_output_gradients_and_buffers_equal_the_plain_form_for_every_shape_type_and_layout(name, form, dtype, layout):
    for shape in SHAPES:
        layer = randomized(name, shape[1])
        twin = copy.deepcopy(layer).double()
        x = images(*shape).to(dtype).to(memory_format=layout).requires_grad_()
        exact = x.detach().double().requires_grad_()
        weights = images(*shape, seed=2).to(dtype)
        y, expected = layer(x), twin.plain(exact)
        y.backward(weights), expected.backward(weights.double())
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        half = dtype != torch.float32
        pairs = [(y, expected), (x.grad, exact.grad)]
        pairs += [(p.grad, q.grad) for p, q in zip(layer.parameters(), twin.parameters(), strict=True)]
        pairs += list(zip(layer.buffers(), twin.buffers(), strict=True))
        for got, want in pairs:
            room = (2e-2 if half and got.dtype == dtype else 5e-3 if half else 2e-4) * max(1.0, want.abs().max().item())
            torch.testing.assert_close(
                got.double(), want.double(), rtol=0, atol=room, msg=lambda m, s=shape: f"{s}: {m}"
            )


@pytest.mark.parametrize("ratios", ["correlation", "relative", "pooled", "static"])
def test_relative_and_pooled_ratios_have_no_code_of_their_own(ratios):
    layer = randomized("en", 6, ratios=ratios)
    assert (layer.native_plan(pixels=1024) is None) == (ratios in ("relative", "pooled"))


@every_case
@every_form
def test_only_the_input_and_small_tensors_are_kept_for_the_backward_pass(case, form):
    name, options = case
    layer, x = randomized(name, 6, **options), images(2, 6, 40, 40).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    large = [t for t in kept if t.numel() >= x.numel()]
    assert len(large) == 1 and large[0].data_ptr() == x.data_ptr()


@every_case
@every_form
def test_gradients_flow_where_they_are_wanted_and_nowhere_else(case, form):
    name, options = case
    x = images(2, 6, 4, 4)
    full = randomized(name, 6, **options)
    reference = torch.autograd.grad(full(x.requires_grad_()).square().sum(), [x, *full.parameters()], allow_unused=True)
    frozen = randomized(name, 6, **options).requires_grad_(False)
    assert torch.equal(torch.autograd.grad(frozen(x).square().sum(), x)[0], reference[0])
    alone = randomized(name, 6, **options)
    loss = alone(x.detach()).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()  # a second time through the same graph adds the same gradients
    for parameter, expected in zip(alone.parameters(), reference[1:], strict=True):
        if expected is not None:
            torch.testing.assert_close(parameter.grad, 2 * expected)


@every_case
@every_form
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_second_derivative_equals_that_of_the_plain_form_and_has_no_side_effects(case, form, training):
    name, options = case
    layer = randomized(name, 6, **options).double().train(training)
    twin, x = copy.deepcopy(layer), images(2, 6, 4, 4, dtype=torch.float64).requires_grad_()
    weights = images(2, 6, 4, 4, seed=2, dtype=torch.float64)

    def second(model, function):
        y, inputs = function(x), [x, *model.parameters()]
        model.train()  # what happens to the layer after the forward pass changes nothing
        first = torch.autograd.grad((y * weights).square().sum(), inputs, create_graph=True, allow_unused=True)
        penalty = sum(grad.square().sum() for grad in first if grad is not None)
        return torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)

    expected = second(twin, twin.plain)
    torch.testing.assert_close(second(layer, layer), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))


def test_a_subclass_with_coefficients_of_its_own_is_not_computed_by_its_parents_code():
    x, (parent, child) = images(2, 6, 4, 4), parent_and_child()
    torch.testing.assert_close(child(x), 2 * parent(x))


def test_without_a_compiler_it_says_so_once_and_computes_the_same(tmp_path):
    code = """
import torch, warnings
from en.norm import build_norm
torch.manual_seed(0)
layer, x = build_norm("en", 6), torch.randn(2, 6, 4, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = [layer.eval()(x) for _ in range(3)]
print(len(caught), *(str(w.message) for w in caught))
torch.testing.assert_close(y[0], layer.plain(x))
"""
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 ") and "no g++" in done.stdout and "slower" in done.stdout


@every_case
@every_form
def test_memory_format_and_dtype_of_the_input_are_kept(case, form):
    name, options = case
    layer = randomized(name, 6, **options)
    x = images(2, 6, 4, 4)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, randomized(name, 6, **options)(x), rtol=1e-4, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer = randomized(name, 6, **options)
            half = layer(x.to(dtype))
        assert half.dtype == dtype
        exact = literal_forward(name, randomized(name, 6, **options), x.to(dtype).float())
        torch.testing.assert_close(half.float(), exact, rtol=2e-2, atol=2e-2)
        assert all(b.dtype == torch.float32 for b in layer.buffers() if b.is_floating_point())


@every_norm
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torch_compile_makes_one_graph_with_the_same_result(name, training):
    torch._dynamo.reset()  # so many classes of layers, compiled one by one, would be more than it keeps
    layer, x = randomized(name, 6).train(training), images(2, 6, 4, 4)
    twin = copy.deepcopy(layer)
    y, graph = layer(x), torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(graph, y)
    y.square().sum().backward(), graph.square().sum().backward()
    for expected, got in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-3)
    for expected, got in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


@every_norm
@every_form
def test_weights_of_another_type_than_the_moments_are_converted(name, form):
    layer, x = randomized(name, 6).eval(), images(2, 6, 4, 4)
    if name == "bn":  # torch's own kernel, which refuses
        with pytest.raises(RuntimeError):
            copy.deepcopy(layer).double()(x)
        return
    torch.testing.assert_close(copy.deepcopy(layer).double()(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sn", "en"])
def test_a_graph_that_leaves_the_size_open_leaves_in_out_where_the_map_is_small(name):
    layer = randomized(name, 6, min_pixels=65).eval()
    sizes = ({0: torch.export.Dim("N", min=1), 2: torch.export.Dim("H", min=2), 3: torch.export.Dim("W", min=2)},)
    exported = torch.export.export(layer, (images(4, 6, 16, 16),), dynamic_shapes=sizes).module()
    for shape in ((2, 6, 20, 20), (3, 6, 4, 4), (1, 6, 2, 40), (2, 6, 5, 13), (2, 6, 8, 8)):
        x = images(*shape)
        torch.testing.assert_close(exported(x), literal_forward(name, layer, x), rtol=1e-4, atol=1e-5)
