"""RandAugment and random erasing of a batch, on its device: pure functions of (seed, epoch, sample).

What is drawn comes from the counter of the crops, further on in it; what is computed is the same for an image in
whatever batch it stands: each pixel by itself, sums in integers, no convolution or product of matrices, whose bits
depend on the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

from en.data.crops import ATTEMPTS, uniform
from en.data.order import Ints
from en.data.palette import Colour

ERASING, RAND_AUGMENT = 1_000, 2_000  # numbers of their first draws; crops have those from 0 on
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
MOST = 10.0  # the largest magnitude
DRAWS = 4  # of an operation: which, whether, its sign, its magnitude


class Drawn(NamedTuple):
    """Holds what the changes of a batch's images are drawn from.

    Attributes:
        seed, epoch: of the run.
        samples: (B,) indices in the data set.
    """

    seed: int
    epoch: int
    samples: Ints

    def uniform(self, draws: int, first: int) -> NDArray[np.float64]:
        return uniform(self.seed, self.epoch, self.samples, draws, first)


# ---- operations: uint8 images (n, 3, H, W) and their numbers (n, 1, 1, 1), float32 -> uint8 images ----


def blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """images * factor + others * (1 - factor), as torchvision's: clamped, and rounded down."""
    return (images * factors + others * (1 - factors)).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """(n, 1, H, W) int32: torchvision's 0.2989 R + 0.587 G + 0.114 B, rounded down, in integers."""
    red, green, blue = images.to(torch.int32)[:, :, None].unbind(1)
    return (red * 2989 + green * 5870 + blue * 1140) // 10_000


def brightness(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    return blend(images, torch.zeros_like(images[:, :1]), 1 + changes)


def colour(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    return blend(images, grey(images), 1 + changes)


def contrast(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    greys = grey(images)
    means = greys.sum((1, 2, 3), keepdim=True) / greys[0].numel()
    return blend(images, means, 1 + changes)


def sharpness(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    """Away from, or towards, the mean of nine pixels that counts the middle one five times; borders stay."""
    if min(images.shape[-2:]) < 3:
        return images
    values = images.to(torch.int32)
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    inner = values[:, :, 1:-1, 1:-1]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    sharpened = images.clone()
    # Not by `blend`, which takes 1 from some pixels that are as their neighbours.
    changed = inner + (inner - (sums * 2 + 13) // 26) * changes
    sharpened[:, :, 1:-1, 1:-1] = changed.clamp_(0, 255).to(torch.uint8)
    return sharpened


def posterize(images: Tensor, dropped: Tensor, padding: Tensor) -> Tensor:
    """Drops the lowest bits, so many of them, rounded."""
    bits = dropped.round().to(torch.uint8)
    return (images >> bits) << bits


def solarize(images: Tensor, thresholds: Tensor, padding: Tensor) -> Tensor:
    """Inverts what is at least a threshold, which is told as what it lies below 255."""
    return torch.where(images >= 255 - thresholds, 255 - images, images)


def autocontrast(images: Tensor, _: Tensor, padding: Tensor) -> Tensor:
    stretched: Tensor = v2.autocontrast_image(images)
    return stretched


def equalize(images: Tensor, _: Tensor, padding: Tensor) -> Tensor:
    equalized: Tensor = v2.equalize_image(images)
    return equalized


def shear_x(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    """Moves each row by its distance from the upper edge times a number, to the left where that is positive."""
    x, y = centres(images)
    return sampled(images, x + changes * (y + images.shape[2] / 2), y, padding)


def shear_y(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    """Moves each column by its distance from the left edge times a number, upwards where that is positive."""
    x, y = centres(images)
    return sampled(images, x, y + changes * (x + images.shape[3] / 2), padding)


def translate_x(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    """Moves by whole pixels, of a share of the width."""
    x, y = centres(images)
    return sampled(images, x - (changes * images.shape[3]).trunc(), y, padding)


def translate_y(images: Tensor, changes: Tensor, padding: Tensor) -> Tensor:
    x, y = centres(images)
    return sampled(images, x, y - (changes * images.shape[2]).trunc(), padding)


def rotate(images: Tensor, degrees: Tensor, padding: Tensor) -> Tensor:
    """Turns counter-clockwise around the centre."""
    x, y = centres(images)
    angle = degrees * (pi / 180)
    square = angle * angle
    # Series, whose error is below 1e-8 up to 30 degrees: torch's functions may round otherwise at a vector's end.
    sin = angle * (1 - square * (1 / 6 - square * (1 / 120 - square / 5040)))
    cos = 1 - square * (1 / 2 - square * (1 / 24 - square * (1 / 720 - square / 40320)))
    return sampled(images, x * cos - y * sin, x * sin + y * cos, padding)


def centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes where the centres of pixels lie from that of the image: x (W,) and y (H, 1), float32."""
    height, width = images.shape[-2:]
    y, x = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (height, width))
    return x, y[:, None]


def sampled(images: Tensor, x: Tensor, y: Tensor, padding: Tensor) -> Tensor:
    """Pixels at other places, bilinear; beyond an image, the padding.

    Args:
        x, y: the places by their distance from the image's centre, to be broadcast to (n, 1, H, W).
    """
    height, width = images.shape[-2:]
    places = [(place * (2 / side)).expand(len(images), 1, height, width) for place, side in ((x, width), (y, height))]
    inside = images.new_ones((len(images), 1, height, width))
    grid = torch.cat(places, dim=1).permute(0, 2, 3, 1)
    values = F.grid_sample(torch.cat([images, inside], dim=1).float(), grid, "bilinear", "zeros", align_corners=False)
    pixels, inside = values[:, :3], values[:, 3:]
    return (pixels + (1 - inside) * padding).round_().clamp_(0, 255).to(torch.uint8)


class Operation(NamedTuple):
    """An operation of RandAugment.

    Attributes:
        apply: changes images.
        most: its number at the largest magnitude, from 0 at none.
        signed: whether the number is negative half of the time.
    """

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    most: float = 0.0
    signed: bool = False


OPERATIONS = (
    Operation(lambda images, _, padding: images),
    Operation(shear_x, 0.3, True),
    Operation(shear_y, 0.3, True),
    Operation(translate_x, 150 / 331, True),
    Operation(translate_y, 150 / 331, True),
    Operation(rotate, 30.0, True),
    Operation(brightness, 0.9, True),
    Operation(colour, 0.9, True),
    Operation(contrast, 0.9, True),
    Operation(sharpness, 0.9, True),
    Operation(posterize, 4.0),
    Operation(solarize, 255.0),
    Operation(autocontrast),
    Operation(equalize),
)
"""torchvision's space of RandAugment, in its order; the first leaves an image as it is."""


@dataclass(frozen=True)
class RandAugment:
    """Some operations on each image, drawn with replacement (Cubuk et al., 2019).

    Attributes:
        operations: of an image, one after another.
        magnitude: of all, 0 to 10.
        deviation: of an operation's own magnitude from it, normally distributed, within 0 and 10 (timm's mstd).
        probability: that an operation is applied at all (timm: 0.5, torchvision: 1).
    """

    operations: int
    magnitude: float
    deviation: float = 0.0
    probability: float = 1.0

    def __call__(self, images: Tensor, drawn: Drawn, padding: Colour) -> Tensor:
        """uint8 images (B, 3, H, W), of which `padding` fills what comes from beyond."""
        if not self.operations:
            return images
        fill = torch.tensor(padding, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
        draws = drawn.uniform(DRAWS * self.operations, RAND_AUGMENT)
        for number in range(self.operations):
            images = apply_all(images, *self.choose(draws[:, DRAWS * number :][:, :DRAWS]), fill)
        return images

    def choose(self, draws: NDArray[np.float64]) -> tuple[Ints, NDArray[np.float32]]:
        """Chooses each image's operation, and its number: (B,) and (B,), of draws (B, 4)."""
        chosen = (draws[:, 0] * len(OPERATIONS)).astype(np.int64)
        chosen[draws[:, 1] >= self.probability] = 0
        # One at a time, so that no vector's length shows in the last bit.
        normal = [NormalDist().inv_cdf(max(draw, 2.0**-53)) for draw in draws[:, 3].tolist()]
        magnitudes = (self.magnitude + self.deviation * np.array(normal)).clip(0, MOST) / MOST
        most = np.array([operation.most for operation in OPERATIONS])[chosen]
        signed = np.array([operation.signed for operation in OPERATIONS])[chosen]
        signs = np.where(signed & (draws[:, 2] < 0.5), -1.0, 1.0)
        return chosen, (magnitudes * most * signs).astype(np.float32)


def apply_all(images: Tensor, chosen: Ints, numbers: NDArray[np.float32], padding: Tensor) -> Tensor:
    """Applies to each image the operation that was chosen for it, those of one together."""
    order = np.argsort(chosen, kind="stable")
    counts = np.bincount(chosen, minlength=len(OPERATIONS)).tolist()
    places = torch.from_numpy(order).to(images.device, non_blocking=True)
    sorted_numbers = torch.from_numpy(numbers[order]).to(images.device, non_blocking=True)
    parts = (torch.split(each, counts) for each in (images[places], sorted_numbers.view(-1, 1, 1, 1)))
    changed = torch.empty_like(images)
    changed[places] = torch.cat(
        [each.apply(part, own, padding) for each, part, own in zip(OPERATIONS, *parts, strict=True) if len(part)]
    )
    return changed


@dataclass(frozen=True)
class RandomErasing:
    """A box of some images becomes the padding (Zhong et al., 2017), as torchvision draws it.

    Ten attempts at an area of 2 to 33 % and a log-uniform ratio of height to width of 0.3 to 3.3; the first that is
    smaller than the image wins, else nothing is erased.

    Attributes:
        probability: that an image has one.
    """

    probability: float

    def __call__(self, images: Tensor, drawn: Drawn, padding: Colour) -> Tensor:
        """uint8 images (B, 3, H, W)."""
        if not self.probability:
            return images
        boxes = torch.from_numpy(self.boxes(drawn, *images.shape[-2:])).to(images.device, non_blocking=True)
        top, left, height, width = boxes.view(-1, 4, 1, 1, 1).unbind(1)
        rows = torch.arange(images.shape[2], device=images.device)[:, None]
        columns = torch.arange(images.shape[3], device=images.device)
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        fill = torch.tensor(padding, dtype=torch.uint8, device=images.device).view(1, 3, 1, 1)
        return torch.where(inside, fill, images)

    def boxes(self, drawn: Drawn, height: int, width: int) -> Ints:
        """(B, 4) as top, left, height, width; of height 0 where nothing is erased."""
        draws = drawn.uniform(4 * ATTEMPTS + 1, ERASING)
        area, ratio, top, left = np.moveaxis(draws[:, 1:].reshape(-1, ATTEMPTS, 4), 2, 0)
        pixels = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area)
        low, high = np.log(ERASED_RATIO)
        ratios = np.exp(low + (high - low) * ratio)
        h, w = (np.rint(np.sqrt(side)).astype(np.int64) for side in (pixels * ratios, pixels / ratios))
        fits = (h < height) & (w < width)
        boxes = np.stack([top * (height - h + 1), left * (width - w + 1), h, w], axis=2).astype(np.int64)
        first: Ints = boxes[np.arange(len(boxes)), fits.argmax(1)]
        first[~fits.any(1) | (draws[:, 0] >= self.probability), 2] = 0
        return first
