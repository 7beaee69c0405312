"""The corruptions by name, each a pure function of (seed, sample, corruption, severity) and the image."""

import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from en.data.corruptions import blur, digital, noise, weather
from en.data.corruptions.scale import Floats

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS: Mapping[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": weather.contrast,
    "elastic": blur.elastic,
    "pixelate": digital.pixelate,
    "jpeg": digital.jpeg,
}


class Corruption(NamedTuple):
    """One corruption of one severity, 1 to 5."""

    name: str
    severity: int

    def apply(self, image: NDArray[np.uint8], seed: int, sample: int) -> NDArray[np.uint8]:
        """Corrupts an image (H, W, 3) uint8 RGB, as it is cropped, a sample of a data set by its index.

        The same numbers are drawn for a sample whatever batch, rank, loader or thread it is on.
        """
        random = np.random.default_rng([seed, sample, zlib.crc32(self.name.encode()), self.severity])
        values = CORRUPTIONS[self.name](image.astype(np.float32) / np.float32(255), self.severity, random)
        corrupted: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        return corrupted

    def apply_to_batch(self, images: Tensor, samples: Tensor, seed: int, pool: Executor) -> Tensor:
        """Corrupts images (B, 3, H, W) uint8 of these samples, (B,), in the threads of a pool."""
        pictures = images.permute(0, 2, 3, 1).numpy()
        indices = samples.tolist()
        found = pool.map(lambda place: self.apply(pictures[place], seed, indices[place]), range(len(pictures)))
        return torch.from_numpy(np.stack(list(found))).permute(0, 3, 1, 2)
