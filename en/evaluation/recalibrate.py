"""Running averages taken anew."""

from itertools import islice

import torch
from torch import nn

from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.distributed.ranks import average_buffers
from en.errors import RunError
from en.norm import RunningNormalizer


@torch.no_grad()
def recalibrate(model: nn.Module, loader: ImageLoader, batches: int, resolution: int, to_device: ToDevice) -> None:
    """Replaces running averages by plain averages over training batches, everything else in evaluation mode.

    This is the "batch average" of the SN paper. A model without running averages is left as it is.

    Raises: RunError when an epoch has fewer batches.
    """
    layers = [
        layer for layer in model.modules() if isinstance(layer, RunningNormalizer) and hasattr(layer, "running_mean")
    ]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    seen = 0
    for batch in islice(loader.train_epoch(0, resolution), batches):
        model(to_device(batch.images, batch.targets)[0])
        seen += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    if seen < batches:
        raise RunError(f"recalibration over {batches} batches: expected at most the {seen} of an epoch")
    average_buffers(model)
