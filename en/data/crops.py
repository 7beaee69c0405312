"""Which part of an image is seen: pure functions of (seed, epoch, sample).

Nothing here depends on the number of workers, ranks or batches, so that any loader on any machine sees the same crops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from en.data.jpeg import resize_crop
from en.data.order import Ints
from en.data.views import IGNORE, View
from en.size import Size

Words = NDArray[np.uint64]
ATTEMPTS = 10  # as torchvision's RandomResizedCrop
REDRAWN = 10  # boxes at most after the first, as mmsegmentation's RandomCrop


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


@runtime_checkable
class ChoosingCrop(Crop, Protocol):
    """A crop that looks at what a view shows of the target, and may draw another one instead: see `choose`.

    Attributes:
        redrawn: how many views it draws at most after the first; 0: it does not look.
    """

    @property
    def redrawn(self) -> int: ...

    def drawn(
        self, attempt: int, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size
    ) -> View:
        """The views of an attempt from 0, the one that the call itself gives, to `redrawn`."""
        ...

    def accepts(self, target: NDArray[Any]) -> bool:
        """Tells whether a view may show this of a target."""
        ...


@runtime_checkable
class WholeCrop(Crop, Protocol):
    """A crop that shows each image at a size of its own, where none is given."""

    def whole(self, height: int, width: int) -> View:
        """The view of one image, of a size that follows from the image's."""
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


@dataclass(frozen=True)
class ScaledCrop:
    """Whole images scaled by a random factor, of which a random part is shown, sometimes mirrored.

    mmsegmentation's RandomResize and RandomCrop: where a scaled image is smaller than the part, padding follows below
    and to the right of it (of a mirrored view, to the left).

    Attributes:
        scale: smallest and largest factor, each as likely as any between.
        flip: probability of a horizontal flip.
        base: the factor is of the scale at which an image just fits into this size, lying or upright, such as (512,
            2048); None: of the image as it is.
        most: a part is drawn again, up to 10 times, unless it shows two classes, and none on this share of the pixels
            that count, or more; mmsegmentation's cat_max_ratio, 0.75 there. 1: never.
    """

    scale: tuple[float, float]
    flip: float
    base: Size | None = None
    most: float = 1.0

    @property
    def redrawn(self) -> int:
        return REDRAWN if self.most < 1 else 0

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        return self.drawn(0, seed, epoch, samples, heights, widths, size)

    def drawn(
        self, attempt: int, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size
    ) -> View:
        draws = uniform(seed, epoch, samples, 4 + 2 * attempt)
        smallest, largest = self.scale
        sides = np.stack([heights, widths], axis=1)
        factors = (smallest + (largest - smallest) * draws[:, 0]) * fitting(sides, self.base)
        scaled = scaled_sides(sides, factors)
        starts = (draws[:, -2:] * ((scaled - np.array(size)).clip(0) + 1)).astype(np.int64)
        boxes = np.concatenate([np.zeros_like(sides), sides], axis=1)
        return View(boxes, draws[:, 1] < self.flip, size, np.concatenate([starts, scaled], axis=1))

    def accepts(self, target: NDArray[Any]) -> bool:
        counts = np.bincount(target.ravel(), minlength=IGNORE + 1)[:IGNORE]
        return int((counts > 0).sum()) > 1 and bool(counts.max() < self.most * counts.sum())


@dataclass(frozen=True)
class WholeImage:
    """Whole images, never mirrored, amid padding below and to the right of them.

    Where a size is given, an image is scaled to fit into it. Else it keeps its own, or that at which it fits into
    `base`, and is padded to a multiple of some pixels.

    Attributes:
        base: a size into which images are scaled, lying or upright; None: they are not scaled.
        multiple: of which height and width are, pixels.
    """

    base: Size | None = None
    multiple: int = 1

    def __call__(self, seed: int, epoch: int, samples: Ints, heights: Ints, widths: Ints, size: Size) -> View:
        sides = np.stack([heights, widths], axis=1)
        scaled = scaled_sides(sides, (np.array(size) / sides).min(1))
        return at_top_left(sides, np.minimum(scaled, size), size)

    def whole(self, height: int, width: int) -> View:
        sides = np.array([[height, width]])
        scaled = scaled_sides(sides, fitting(sides, self.base))
        rows, columns = (-(-scaled[0] // self.multiple) * self.multiple).tolist()
        return at_top_left(sides, scaled, (rows, columns))


def fitting(sides: Ints, base: Size | None) -> NDArray[np.float64]:
    """The factors, (B,), at which images of (B, 2) heights and widths just fit into a size, lying or upright."""
    if base is None:
        return np.ones(len(sides))
    factors: NDArray[np.float64] = (np.sort(base) / np.sort(sides, axis=1)).min(1)
    return factors


def scaled_sides(sides: Ints, factors: NDArray[np.float64]) -> Ints:
    """Heights and widths, (B, 2), times (B,) factors, rounded to at least one pixel."""
    scaled: Ints = np.floor(sides * factors[:, None] + 0.5).astype(np.int64).clip(1)
    return scaled


def at_top_left(sides: Ints, scaled: Ints, size: Size) -> View:
    """Views that show whole images of (B, 2) heights and widths, scaled to others, from the top left corner on."""
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1)
    windows = np.concatenate([np.zeros_like(scaled), scaled], axis=1)
    return View(boxes, np.zeros(len(sides), bool), size, windows)


def choose(
    crop: Crop,
    look: Callable[[View, int], NDArray[Any]],
    seed: int,
    epoch: int,
    samples: Ints,
    heights: Ints,
    widths: Ints,
    size: Size,
) -> View:
    """Draws views as a crop does, and for those that it does not accept others, the last of them unseen.

    Args:
        look: gives what a row of a view shows of its target.
    """
    view = crop(seed, epoch, samples, heights, widths, size)
    if not chooses(crop):
        return view
    rows = np.arange(len(samples))
    for attempt in range(1, crop.redrawn + 1):
        rows = rows[[not crop.accepts(look(view, row)) for row in rows.tolist()]]
        if len(rows) == 0:
            break
        again = crop.drawn(attempt, seed, epoch, samples, heights, widths, size)
        view = view.replaced(rows, again)
    return view


def chooses(crop: Crop) -> TypeGuard[ChoosingCrop]:
    return isinstance(crop, ChoosingCrop) and crop.redrawn > 0


def seen_in_evaluation(crop: Crop, seed: int, samples: Ints, heights: Ints, widths: Ints, size: Size | None) -> View:
    """Draws views for evaluation, of a size, or of one image at its own. Raises: ValueError if the crop has none."""
    if size is not None:
        return crop(seed, 0, samples, heights, widths, size)
    if not isinstance(crop, WholeCrop):
        raise ValueError(f"size None: expected a size for {type(crop).__name__}, which shows no image at its own")
    (height,), (width,) = heights.tolist(), widths.tolist()
    return crop.whole(height, width)


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


def uniform(seed: int, epoch: int, samples: Ints, draws: int, first: int = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on (seed, epoch, sample, draw) alone: (B, draws), those from draw `first` on.

    Counter-based, by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) applied to each word of the key in turn.
    """
    state = splitmix64(splitmix64(np.uint64(seed) + splitmix64(np.zeros(1, np.uint64))) + np.uint64(epoch))
    state = splitmix64(state + samples.astype(np.uint64))[:, None]
    words = splitmix64(state + np.arange(first, first + draws, dtype=np.uint64))
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
