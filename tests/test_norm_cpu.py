"""Whole layers in C++: against float64 on every kind of map, whatever the number of threads, and what they keep."""

import copy

import pytest
import torch
from norm_cases import images, randomized
from torch import Tensor

from en.norm import Normalizer, kernels

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [  # vectors that overlap, fewer channels than a vector, more than a chunk, maps of 1 to 1024 pixels
    (3, 58, 8, 8),
    (2, 7, 5, 3),
    (5, 300, 2, 2),
    (2, 24, 32, 32),
    (6, 17, 1, 1),
    (1, 600, 4, 5),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def all_of(layer: Normalizer, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The layer's output, the gradients of the input and of the parameters, and its buffers afterwards."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    return [y.detach(), *grads, *layer.buffers()]


@every_shape
@every_layout
@MODES
@pytest.mark.parametrize("name", ["en", "sn", "gn"])
@pytest.mark.parametrize("min_pixels", [1, 65])
def test_a_layer_agrees_with_its_definition_in_float64(name, shape, layout, training, min_pixels):
    assert kernels.native_parts() == "layers"
    options = {} if name == "gn" else {"min_pixels": min_pixels}
    layer = randomized(name, shape[1], **options).train(training)
    if name == "en":
        with torch.no_grad():  # units that saturate magnify roundings, in every form
            layer.gate[0].weight.mul_(0.02)
            layer.reduce.weight.mul_(0.02)
    twin = copy.deepcopy(layer).double()
    x, upstream = (images(*shape, seed=seed).contiguous(memory_format=LAYOUTS[layout]) for seed in (1, 2))
    found = all_of(layer, x, upstream)
    exact = x.double().requires_grad_()
    y = twin.plain(exact)
    grads = torch.autograd.grad(y, [exact, *twin.parameters()], upstream.double())
    for one, other in zip(found, [y.detach(), *grads, *twin.buffers()], strict=True):
        if one.dtype == torch.float32 and one.numel():
            assert (one - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1)


@every_shape
@every_layout
@MODES
@pytest.mark.parametrize("name", ["en", "sn"])
def test_a_layer_computes_the_same_bits_with_any_number_of_threads(name, shape, layout, training):
    before, found = torch.get_num_threads(), []
    shape = (*shape[:2], 4 * shape[2], 4 * shape[3])  # enough for several threads
    x, upstream = (images(*shape, seed=seed).contiguous(memory_format=LAYOUTS[layout]) for seed in (1, 2))
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(all_of(randomized(name, shape[1]).train(training), x, upstream))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("name", ["en", "sn"])
def test_inference_gives_the_bits_that_a_forward_pass_with_gradients_gives(name):
    layer, x = randomized(name, 58).eval(), images(3, 58, 8, 8)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y, layer(x).detach())


def kept(name: str, shape: tuple[int, int, int, int]) -> int:
    """Values that a layer keeps for its backward pass, beside its input and parameters."""
    layer, seen = randomized(name, shape[1]), []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda part: (seen.append(part), part)[1], lambda part: part)
    x = images(*shape).requires_grad_()
    with hooks:
        layer(x)
    own = {part.data_ptr() for part in (x, *layer.parameters())}
    return sum(part.numel() for part in seen if part.data_ptr() not in own)


@pytest.mark.parametrize("name", ["en", "sn"])
def test_what_a_layer_keeps_is_at_most_three_values_a_cell_and_less_on_the_smallest_maps(name):
    cells = 8 * 256
    assert kept(name, (8, 256, 4, 4)) < 3.6 * cells
    assert kept(name, (8, 256, 2, 2)) < 0.6 * cells


@pytest.mark.parametrize("size", [1e-12, 1e-4, 0.01, 1.0, 5.0, 100.0])
def test_the_tanh_of_the_gate_is_computed_in_doubles_and_rounded_once(size):
    layer = randomized("en", 4, normalizers=["bn", "ln"], hidden=1001)
    first, _, last = layer.gate
    with torch.no_grad():
        first.weight.zero_()  # so that the units are the tanh of their biases
        first.bias.copy_(size * torch.randn(2002, generator=torch.Generator().manual_seed(0)))
    layer(images(1, 4, 3, 3)).square().sum().backward()
    units = first.bias.double().tanh().float()
    assert torch.equal(last.weight.grad, last.bias.grad[:, None] * units)  # of one image
