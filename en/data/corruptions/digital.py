"""Corruptions by storing an image. Images are (H, W, 3), 0 to 1; constants are CIFAR-10-C's and ImageNet-C's."""

import io

import numpy as np
from PIL import Image

from en.data.corruptions.scale import Floats, strength


def pixelate(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Makes the image smaller, to a share of its sides, and as large as before, by areas."""
    share = strength((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), severity, image)
    height, width = image.shape[:2]
    small = as_picture(image).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return as_floats(small.resize((width, height), Image.Resampling.BOX))


def jpeg(image: Floats, severity: int, random: np.random.Generator) -> Floats:
    """Compresses the image by Pillow's JPEG encoder, at a quality."""
    quality = round(strength((80, 65, 58, 50, 40), (25, 18, 15, 10, 7), severity, image))
    with io.BytesIO() as file:
        as_picture(image).save(file, "JPEG", quality=quality)
        return as_floats(Image.open(file))


def as_picture(image: Floats) -> Image.Image:
    return Image.fromarray(np.uint8(np.rint(image * 255)))


def as_floats(picture: Image.Image) -> Floats:
    values: Floats = np.asarray(picture, np.float32) / np.float32(255)
    return values
