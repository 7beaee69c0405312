"""Which parameters take weight decay."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from en.norm.base import Normalizer


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that learn, in two groups for an optimizer of torch.optim: with and without weight decay.

    No decay for what a normalizer's class does not list in `weight_decayed`, EN's gate and convolution included, and
    for biases. A group that would be empty is left out.
    """
    spared = set(undecayed(model))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def undecayed(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that take no weight decay: those that a normalizer's class does not list in
    `weight_decayed`, those of batch normalization, and the biases of all other layers."""
    norms = (Normalizer, _BatchNorm)
    inside = {id(part) for layer in model.modules() if isinstance(layer, norms) for part in layer.modules()}
    for place, layer in model.named_modules():
        prefix = f"{place}." if place else ""
        if isinstance(layer, norms):
            listed = layer.weight_decayed if isinstance(layer, Normalizer) else frozenset()
            yield from (prefix + name for name in {name for name, _ in layer.named_parameters()} - listed)
        elif id(layer) not in inside:
            own = dict(layer.named_parameters(recurse=False))
            yield from (prefix + name for name in own if name.startswith("bias") or name.endswith("bias"))
