"""EN's gate hooked, wrapped, lengthened or quantized, on maps where it is as published and on smaller ones."""

import copy

import pytest
import torch
from norm_cases import images, randomized
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class LoRA(nn.Module):
    """A linear layer that learns a correction of low rank, as adapters do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 1, bias=False)
        self.up = nn.Linear(1, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


GATE_PIXELS = pytest.mark.parametrize("gate_pixels", [1, 17])  # of which the first leaves the tests' maps as published


@GATE_PIXELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_put_into_the_gate_are_called_and_learn(dtype, gate_pixels):
    torch.manual_seed(0)
    layer, x = randomized("en", 6, gate_pixels=gate_pixels), images(2, 6, 4, 4)
    twin = copy.deepcopy(layer)
    adapter = LoRA(layer.gate[2])
    layer.gate[2] = adapter
    nn.init.zeros_(adapter.up.weight)
    torch.testing.assert_close(layer(x), twin(x))
    with torch.no_grad():
        adapter.up.weight.copy_(torch.tensor([[-50.0], [50.0], [0.0]]))
    y = layer.to(dtype)(x)
    assert not torch.allclose(y, twin(x), atol=0.05)
    y.square().sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("place", ["gate", "gate.0", "gate.1", "gate.2", "reduce"])
@GATE_PIXELS
def test_a_hook_on_any_part_of_the_ratios_is_called_and_changes_nothing_else(place, gate_pixels):
    layer = randomized("en", 6, gate_pixels=gate_pixels).double()
    x, seen = images(2, 6, 4, 4, dtype=torch.float64), []
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    handle = layer.get_submodule(place).register_forward_hook(lambda *_: seen.append(place))
    grads = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(grads, expected)
    handle.remove()
    layer(x)
    assert seen == [place]


class Wrapper(nn.Module):
    """Passes on what it gets."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def compiled_gate(layer):
    layer.gate = torch.compile(layer.gate, backend="eager")


def checkpointed_gate(layer):
    layer.gate = checkpoint_wrapper(layer.gate)


def wrapped_gate(layer):
    layer.gate = Wrapper(layer.gate)


def wrapped_last_layer(layer):
    layer.gate[2] = Wrapper(layer.gate[2])


def longer_gate(layer):
    layer.gate.insert(2, nn.Dropout(0.0))
    layer.gate.append(nn.Identity())


def gate_with_a_hook_before_it(layer):
    layer.gate.register_forward_pre_hook(lambda module, arguments: arguments[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile's own
@GATE_PIXELS
@pytest.mark.parametrize(
    "change",
    [compiled_gate, checkpointed_gate, wrapped_gate, wrapped_last_layer, longer_gate, gate_with_a_hook_before_it],
)
def test_a_gate_that_computes_the_same_in_another_way_changes_nothing(change, gate_pixels):
    layer, x = randomized("en", 6, gate_pixels=gate_pixels).double(), images(2, 6, 4, 4, dtype=torch.float64)
    y = layer(x)
    expected = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    change(layer)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")  # torch.ao's own
@GATE_PIXELS
def test_a_gate_that_torch_quantizes_runs_and_stays_close(gate_pixels):
    layer, x = nn.Sequential(randomized("en", 6, gate_pixels=gate_pixels)).eval(), images(2, 6, 4, 4)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear})
    assert type(quantized[0].gate[2]) is not nn.Linear
    torch.testing.assert_close(quantized(x), layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("convolution", [True, False])
def test_relative_ratios_follow_what_the_gate_sees_and_not_how_large_it_is(convolution):
    seen = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # of one sample
    offsets = torch.stack([size * seen for size in (1e-3, 1.0, 1e3)])
    for ratios in ("correlation", "relative"):
        layer = randomized("en", 6, ratios=ratios, convolution=convolution, eps=1e-12).double()
        found = layer.ratios(offsets[:, 0], offsets, torch.ones_like(offsets), 100)
        assert torch.allclose(found, found[:1], rtol=1e-4) == (ratios == "relative")
