"""How tests read a data set through a loader."""

import torch

from en.data import ImageLoader, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop

CROP = RandomResizedCrop((0.25, 1.0), (3 / 4, 4 / 3), 0.5)


def reading(
    batch_size: int = 16, rank: int = 0, world_size: int = 1, workers: int = 2, timeout_s: float = 30
) -> Reading:
    return Reading(Part(batch_size, 1, rank, world_size, 7), CROP, CentreCrop(0.875), workers, timeout_s, False)


def epoch_pixels(loader: ImageLoader, epoch: int, resolution: int = 48) -> dict[int, torch.Tensor]:
    pixels = {}
    for batch in loader.train_epoch(epoch, (resolution, resolution)):
        assert batch.images.shape[1:] == (3, resolution, resolution) and batch.images.dtype == torch.uint8
        pixels |= dict(zip(batch.samples.tolist(), batch.images.clone(), strict=True))
    return pixels
