"""Shared by all corruptions: strengths by an image's size, convolution, bilinear sampling, smooth random fields."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Five = Sequence[float]
SMALL, LARGE = 32, 224  # sides, in pixels, that strengths are given for


def side_of(image: Floats) -> int:
    """The shorter side of an image (H, W, ...), pixels, which lengths are shares of."""
    return int(min(image.shape[:2]))


def strength(small: Five, large: Five, severity: int, image: Floats) -> float:
    """A strength for an image, by severity 1 to 5, from those at sides of 32 and of 224 pixels, all above 0.

    Between them it is interpolated geometrically along the logarithm of the shorter side; beyond, it is that of the
    nearer end (our choice: neither CIFAR-10-C nor ImageNet-C says what is in between).
    """
    position = math.log(side_of(image) / SMALL) / math.log(LARGE / SMALL)
    position = min(max(position, 0.0), 1.0)
    return float(small[severity - 1] ** (1 - position) * large[severity - 1] ** position)


def length(small: Five, large: Five, severity: int, image: Floats) -> float:
    """A length in pixels, from those at sides of 32 and of 224 pixels: as `strength`, by shares of the side."""
    of_small, of_large = [value / SMALL for value in small], [value / LARGE for value in large]
    return strength(of_small, of_large, severity, image) * side_of(image)


def fast_size(least: int) -> int:
    """The first number from `least` on without prime factors above 5, of which Fourier transforms are fast."""
    for size in range(least, 2 * least + 1):
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
    raise AssertionError("there is a power of 2")


def convolve(image: Floats, kernel: Floats) -> Floats:
    """An image (H, W, ...) convolved with a kernel of odd sides, mirrored beyond its edges."""
    above, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    padding = [(above, above), (left, left)] + [(0, 0)] * (image.ndim - 2)
    planes = np.moveaxis(np.pad(image, padding, mode="symmetric"), (0, 1), (-2, -1))
    shape = fast_size(planes.shape[-2]), fast_size(planes.shape[-1])
    spectrum = np.fft.rfft2(planes, shape) * np.fft.rfft2(kernel, shape)
    found = np.fft.irfft2(spectrum, shape)[..., 2 * above : 2 * above + image.shape[0], 2 * left :]
    convolved: Floats = np.moveaxis(found[..., : image.shape[1]], (-2, -1), (0, 1)).astype(np.float32)
    return convolved


def gaussian(sigma: float) -> Floats:
    """A Gaussian kernel of a standard deviation in pixels, up to three of them, of sum 1."""
    radius = max(1, math.ceil(3 * sigma))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.outer(line, line)
    normed: Floats = (kernel / kernel.sum()).astype(np.float32)
    return normed


def streak(sigma: float, angle: float) -> Floats:
    """A Gaussian along a line at an angle, radians: the path of a point during an exposure, of sum 1.

    Args:
        sigma: standard deviation along it, pixels; it ends at two of them.
    """
    radius = max(1, math.ceil(2 * sigma))
    along = np.linspace(-2 * sigma, 2 * sigma, 8 * radius + 1)
    kernel = np.zeros((2 * radius + 3, 2 * radius + 3))
    spread(
        kernel,
        radius + 1 + along * math.sin(angle),
        radius + 1 + along * math.cos(angle),
        np.exp(-2 * (along / (2 * sigma)) ** 2),
    )
    normed: Floats = (kernel / kernel.sum()).astype(np.float32)
    return normed


def spread(
    into: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64], weights: NDArray[np.float64]
) -> None:
    """Adds weights at places between pixels to the four pixels around each."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = np.abs(1 - down - (rows - top)) * np.abs(1 - right - (columns - left))
        np.add.at(into, (top + down, left + right), weights * part)


def sample(image: Floats, rows: Floats, columns: Floats) -> Floats:
    """An image (H, W, C) at places between its pixels, (H, W) each, bilinear; beyond its edges, the edge."""
    height, width = image.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    above = image[top, left] * (1 - across) + image[top, right] * across
    below = image[bottom, left] * (1 - across) + image[bottom, right] * across
    sampled: Floats = (above * (1 - down) + below * down).astype(np.float32)
    return sampled


def enlarged(field: Floats, height: int, width: int) -> Floats:
    """A field (h, w) at another size, (height, width), by cubic interpolation."""
    picture = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
