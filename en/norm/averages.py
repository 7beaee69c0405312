"""Running averages taken anew."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.types import Device

from en.norm.pretrained import AVERAGES


@torch.no_grad()
def update_statistics(model: nn.Module, batches: Iterable[Any], device: Device = None) -> int:
    """Replaces running averages by plain averages over batches, everything else in evaluation mode.

    This is the "batch average" of the SN paper, what averaged weights need (SWA, EMA), and "precise BN".
    torch.optim.swa_utils.update_bn differs in that dropout acts meanwhile. Averages of torch's own batch normalization
    are taken too, frozen ones are not; several ranks each take their own, unless `sync` is on. Modes are as before.

    Args:
        batches: inputs of the model, or tuples or lists that begin with one. Every batch counts the same.
        device: where inputs are moved to; None leaves them where they are.
    Returns: the number of batches.
    Raises: ValueError where there are none. The averages are then as before, as they are when the model raises.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and averages(layer)]
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    before = [[buffer.clone() for buffer in averages(layer)] for layer in layers]
    seen = 0
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.training = True  # not what is within it
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(inputs if device is None else inputs.to(device))
            seen += 1
        if not seen:
            raise ValueError("running averages taken anew: expected at least one batch")
    except BaseException:
        for layer, buffers in zip(layers, before, strict=True):
            for buffer, value in zip(averages(layer), buffers, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return seen


def averages(layer: _BatchNorm) -> list[Tensor]:
    """The buffers of a batch normalization that batches change."""
    buffers = [layer._buffers.get(name) for name in AVERAGES]
    if getattr(layer, "frozen", False) or not layer.track_running_stats or None in buffers[:2]:
        return []
    return [buffer for buffer in buffers if buffer is not None]
