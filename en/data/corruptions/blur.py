"""Blur of lenses, glass and movement. Images are (H, W, 3), 0 to 1; all constants but zoom_blur's are ours."""

import math

import numpy as np
from PIL import Image

from en.data.corruptions.scale import Floats, convolve, gaussian, length, sample, streak, strength

ZOOMS = 11


def defocus_blur(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Spreads every point over a disc, whose edge is soft by a pixel."""
    radius = length((0.8, 1.0, 1.2, 1.5, 2.0), (3, 4, 6, 8, 10), severity, image)
    reach = math.ceil(radius + 0.5)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)
    return convolve(image, (disc / disc.sum()).astype(np.float32))


def glass_blur(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Shows at every point another one near by, of a uniform distance along either axis; blurred before and after."""
    reach = length((0.6, 0.8, 1.0, 1.3, 1.6), (1.5, 2, 3, 4, 5), severity, image)
    kernel = gaussian(length((0.3, 0.35, 0.4, 0.45, 0.5), (0.7, 0.8, 0.9, 1.1, 1.3), severity, image))
    height, width = image.shape[:2]
    moved = np.rint(random.uniform(-reach, reach, (2, height, width))).astype(np.intp)
    rows = np.clip(np.arange(height)[:, None] + moved[0], 0, height - 1)
    columns = np.clip(np.arange(width) + moved[1], 0, width - 1)
    return convolve(convolve(image, kernel)[rows, columns], kernel)


def motion_blur(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Moves the image during its exposure, along a line at up to 45 degrees from the horizontal."""
    sigma = length((0.7, 1.0, 1.3, 1.7, 2.1), (2.5, 4, 6, 8, 10), severity, image)
    return convolve(image, streak(sigma, random.uniform(-math.pi / 4, math.pi / 4)))


def zoom_blur(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Averages the image over a movement towards its centre."""
    most = strength((0.05, 0.10, 0.15, 0.20, 0.25), (0.10, 0.15, 0.20, 0.25, 0.30), severity, image)
    height, width = image.shape[:2]
    picture, seen = Image.fromarray(np.uint8(np.rint(image * 255))), np.zeros(image.shape, np.float32)
    for zoom in np.linspace(1, 1 + most, ZOOMS):
        left, top = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
        box = (left, top, width - left, height - top)
        seen += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    seen /= np.float32(ZOOMS * 255)
    return seen


def elastic(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Moves every point by a smooth random field, whose standard deviation and grain are shares of the side."""
    deviation = length((0.35, 0.5, 0.65, 0.85, 1.05), (1.8, 2.5, 3.3, 4.2, 5.2), severity, image)
    kernel = gaussian(length((1.9,) * 5, (13,) * 5, severity, image))
    # Of white noise, a kernel leaves as much as the root of the sum of its squares.
    scale = deviation / math.sqrt(float(np.square(kernel).sum()))
    height, width = image.shape[:2]
    moved = convolve(random.standard_normal((height, width, 2), np.float32), kernel) * np.float32(scale)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return sample(image, rows + moved[..., 0], columns + moved[..., 1])
