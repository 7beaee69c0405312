"""Which part of an image is seen: pure functions of (seed, epoch, sample).

Nothing here depends on the number of workers, ranks or batches, so that any loader on any machine sees the same crops.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from en.data.jpeg import resize_crop
from en.data.order import Ints
from en.data.views import View
from en.size import Size

Words = NDArray[np.uint64]
ATTEMPTS = 10  # as torchvision's RandomResizedCrop


class Crop(Protocol):
    """Which box of each image is seen, scaled to a size, and whether it is mirrored."""

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        """A view of that size of some images: a pure function of the arguments, sample by sample.

        Its boxes may reach beyond the images.

        Args:
            samples: (B,) indices in the data set.
            heights, widths: (B,) of the images, pixels.
        """
        ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """Random resized crop and horizontal flip.

    torchvision's algorithm: ten attempts at an area and a log-uniform aspect ratio, the first that fits wins, else the
    largest central crop within the ratio's limits.

    Attributes:
        scale: smallest and largest share of the image's area in the crop.
        ratio: smallest and largest width / height of the crop; of a size that is no square, times its width / height
            (our choice), so that it bounds how far images are stretched.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        draws = uniform(seed, epoch, samples, 4 * ATTEMPTS + 1)
        flips = draws[:, -1] < self.flip
        area_draw, ratio_draw, top_draw, left_draw = np.moveaxis(draws[:, :-1].reshape(-1, ATTEMPTS, 4), 2, 0)
        smallest, largest = self.scale
        low, high = (ratio * (size[1] / size[0]) for ratio in self.ratio)
        log_low, log_high = np.log((low, high))
        target = (heights * widths)[:, None] * (smallest + (largest - smallest) * area_draw)
        ratio = np.exp(log_low + (log_high - log_low) * ratio_draw)
        w = np.rint(np.sqrt(target * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(target / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
        first, rows = fits.argmax(1), np.arange(len(samples))
        h, w = h[rows, first], w[rows, first]
        top = (top_draw[rows, first] * (heights - h + 1)).astype(np.int64)
        left = (left_draw[rows, first] * (widths - w + 1)).astype(np.int64)
        boxes = np.stack([top, left, h, w], axis=1)
        return View(np.where(fits.any(1)[:, None], boxes, fallback_boxes(heights, widths, (low, high))), flips, size)


@dataclass(frozen=True)
class CentreCrop:
    """The largest central boxes of the size's form, their sides times `share`, never mirrored."""

    share: float

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        return View(centre_boxes(heights, widths, self.share, size), np.zeros(len(heights), bool), size)


@dataclass(frozen=True)
class ResizeCrop:
    """Whole images, scaled until their shorter side is the size's longer one / `share`, of which the centre is shown.

    Of a square, torchvision's Resize(round(R / share)) and CenterCrop(R). Never mirrored.
    """

    share: float

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        shown = resize_crop(heights, widths, round(max(size) / self.share), size)
        return View(shown.boxes, shown.flips, size, np.concatenate([shown.windows, shown.resized], axis=1))


def fallback_boxes(heights: Ints, widths: Ints, ratio: tuple[float, float]) -> Ints:
    """The largest central crops whose width / height lies within the limits: (B, 4)."""
    w = np.minimum(widths, np.rint(heights * ratio[1]).astype(np.int64)).clip(1)
    h = np.minimum(heights, np.rint(widths / ratio[0]).astype(np.int64)).clip(1)
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)


def centre_boxes(heights: Ints, widths: Ints, share: float, size: Size = (1, 1)) -> Ints:
    """The largest central boxes of the size's form, their sides times `share`: (B, 4) as top, left, height, width.

    Squares whose side is `share` of the shorter side, scaled to R pixels, show what Resize(R / share) and CenterCrop(R)
    show, but not the same pixels: the filter lies elsewhere and ends at the box (see ResizeCrop).
    """
    form = size[1] / size[0]
    largest = np.minimum(heights, widths / form)
    h = np.rint(share * largest).astype(np.int64).clip(1)
    w = np.rint(share * largest * form).astype(np.int64).clip(1)
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)


def uniform(seed: int, epoch: int, samples: Ints, draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on (seed, epoch, sample, draw) alone: (B, draws).

    Counter-based, by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) applied to each word of the key in turn.
    """
    state = splitmix64(splitmix64(np.uint64(seed) + splitmix64(np.zeros(1, np.uint64))) + np.uint64(epoch))
    state = splitmix64(state + samples.astype(np.uint64))[:, None]
    words = splitmix64(state + np.arange(draws, dtype=np.uint64))
    numbers: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def splitmix64(words: NDArray[Any]) -> Words:
    """SplitMix64's next state and its finalizer, on each uint64."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        last: Words = words ^ (words >> np.uint64(31))
        return last
