"""How tests read a data set through a loader."""

import numpy as np
import torch

from en.data import ImageLoader, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.ffcv.file import BetonFile
from en.data.views import Box, View

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


def decoded(file: BetonFile, sample: int, box: Box, size: tuple[int, int]) -> np.ndarray | str:
    """A part of one sample, (H, W, 3), or what is wrong with it."""
    out = torch.zeros((1, *size, 3), dtype=torch.uint8)
    refused = file.decode(np.array([sample]), View(np.array([box]), np.zeros(1, bool), size), out)
    return refused.get(0, out[0].numpy())
