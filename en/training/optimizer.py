"""The optimizer, and which parameters take weight decay."""

from collections.abc import Iterator

import torch
from torch import nn

from en.norm import Normalizer


def build_optimizer(
    model: nn.Module, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_on: str
) -> torch.optim.SGD:
    """SGD with (Nesterov) momentum in two groups: with and without weight decay.

    Args:
        decay_on: weights, or all parameters.
    """
    kept = set() if decay_on == "all" else set(undecayed(model))
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in parameters if name not in kept], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters if name in kept], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def undecayed(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that take no weight decay by default: those that a normalizer's class does not list in
    `weight_decayed`, and the biases of all other layers."""
    inside = {id(part) for layer in model.modules() if isinstance(layer, Normalizer) for part in layer.modules()}
    for place, layer in model.named_modules():
        prefix = f"{place}." if place else ""
        if isinstance(layer, Normalizer):
            names = {name for name, _ in layer.named_parameters()} - layer.weight_decayed
            yield from (prefix + name for name in names)
        elif id(layer) not in inside and isinstance(getattr(layer, "bias", None), nn.Parameter):
            yield f"{prefix}bias"
