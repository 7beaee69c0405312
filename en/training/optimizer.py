"""The optimizer."""

import torch
from torch import nn

from en.norm import param_groups


def build_optimizer(
    model: nn.Module, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_on: str
) -> torch.optim.SGD:
    """SGD with (Nesterov) momentum in two groups: with and without weight decay.

    Args:
        decay_on: weights, or all parameters.
    """
    groups = param_groups(model, weight_decay)
    if decay_on == "all":
        everything = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": everything, "weight_decay": weight_decay}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
