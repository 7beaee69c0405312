"""Running averages taken anew."""

from itertools import islice

from torch import nn

from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.distributed.buffers import average_buffers
from en.errors import warn
from en.norm import update_statistics
from en.size import Size


def recalibrate(model: nn.Module, loader: ImageLoader, batches: int, size: Size, to_device: ToDevice) -> None:
    """Replaces running averages by plain averages over training batches, everything else in evaluation mode.

    This is the "batch average" of the SN paper. A model without running averages is left as it is. Where an epoch has
    fewer batches, all of them are taken, which a warning says.
    """
    images = (to_device(batch.images, batch.targets)[0] for batch in loader.train_epoch(0, size))
    seen = update_statistics(model.eval(), islice(images, batches))
    if seen < batches:
        warn(f"--recalibrate {batches}: an epoch has {seen} batches: running averages are taken over these")
    average_buffers(model)
