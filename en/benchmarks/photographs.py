"""JPEG files that cost as much to decode as photographs do: of noise, or mosaics of photographs."""

import io
import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from en.errors import UserError

CLASSES = 4


class Kind(NamedTuple):
    """How photographs are stored: height, width, quality, and Pillow's number of the chroma subsampling."""

    height: int
    width: int
    quality: int
    subsampling: int

    def __str__(self) -> str:
        sampling = ("4:4:4", "4:2:2", "4:2:0")[self.subsampling]
        return f"{self.width} x {self.height}, quality {self.quality}, {sampling}"


KINDS = (Kind(375, 500, 90, 2), Kind(387, 470, 96, 0))
"""Kinds of cameras and web sites, and of most files of ImageNet."""


def make_images(root: Path, kind: Kind, photos: Path | None, count: int, workers: int) -> int:
    """Writes class folders of JPEGs, `count` for training and one a class for evaluation. Returns: bytes for training.

    Args:
        photos: see `picture`.
    """
    for split, numbers in (("train", range(count)), ("val", range(count, count + CLASSES))):
        for label in range(CLASSES):
            (root / split / f"{label}").mkdir(parents=True)
        names = [root / split / f"{number % CLASSES}" / f"{number:05}.jpg" for number in numbers]
        with ProcessPoolExecutor(workers) as pool:
            total = sum(pool.map(partial(write_image, kind, photos), names, numbers, chunksize=16))
            if split == "train":
                size = total
    return size


def write_image(kind: Kind, photos: Path | None, path: Path, index: int) -> int:
    return path.write_bytes(encode(picture(photos, index, kind), kind))


def encode(image: Image.Image, kind: Kind) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=kind.quality, subsampling=kind.subsampling)
    return buffer.getvalue()


def picture(photos: Path | None, index: int, kind: Kind) -> Image.Image:
    """Makes the photograph of an index: noise, or a mosaic of those in a folder. Raises: UserError for an empty one."""
    if photos is None:
        return Image.fromarray(noise(index, kind.height, kind.width))
    paths = sorted(photos.rglob("*.jpg"))
    if not paths:
        raise UserError(f"--photos {photos}: expected a folder with .jpg files")
    canvas = Image.new("RGB", (kind.width, kind.height))
    draw = itertools.count(9 * index)
    top = 0
    while top < kind.height:
        left, lowest = 0, kind.height
        while left < kind.width:
            tile = Image.open(paths[next(draw) % len(paths)]).convert("RGB")
            canvas.paste(tile, (left, top))
            left, lowest = left + tile.width, min(lowest, tile.height)
        top += lowest
    return canvas


def noise(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draws an image with the spectrum of photographs, f^-1.3 in three correlated channels, (height, width, 3)."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    amplitude = np.maximum(frequency, 1) ** -1.3
    shape = (3, *amplitude.shape)
    spectrum = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    channels = np.fft.irfft2(spectrum * amplitude, (height, width))
    channels = channels.mean(0) * 2 + channels * 0.5
    channels = (channels - channels.mean()) / channels.std() * 55 + 118
    pixels: NDArray[np.uint8] = channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels
