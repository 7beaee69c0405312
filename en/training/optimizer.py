"""The optimizer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from en.norm import param_groups


def build_optimizer(
    model: nn.Module,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_on: str,
    head_lr_factor: float = 1.0,
    head: Sequence[str] = (),
) -> torch.optim.SGD:
    """SGD with (Nesterov) momentum in two groups: with and without weight decay.

    Args:
        decay_on: weights, or all parameters.
        head: names of the modules whose rate is `head_lr_factor` times that of the others; of another factor than 1,
            they have groups of their own.
    """
    groups = param_groups(model, weight_decay)
    if decay_on == "all":
        everything = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": everything, "weight_decay": weight_decay}]
    if head_lr_factor != 1:
        own = {parameter for name in head for parameter in model.get_submodule(name).parameters()}
        groups = [part for group in groups for part in parted(group, own, head_lr_factor)]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def parted(group: dict[str, Any], head: Iterable[nn.Parameter], factor: float) -> Iterator[dict[str, Any]]:
    """Yields a group without the head's parameters, and one of these with its `lr_factor`; none that is empty."""
    own = {id(parameter) for parameter in head}
    for in_head, rate in ((False, {}), (True, {"lr_factor": factor})):
        parameters = [parameter for parameter in group["params"] if (id(parameter) in own) == in_head]
        if parameters:
            yield {**group, "params": parameters, **rate}
