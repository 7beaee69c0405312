"""JPEG files that cost as much to decode as photographs do, made of noise."""

import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, QUALITY, CLASSES = 512, 384, 90, 4


def make_images(root: Path, count: int, workers: int) -> int:
    """Class folders of JPEGs with the spectrum of photographs, f^-1.3 in three correlated channels. Returns: bytes."""
    for split, number in (("train", count), ("val", CLASSES)):
        for label in range(CLASSES):
            (root / split / f"{label}").mkdir(parents=True)
        with ProcessPoolExecutor(workers) as pool:
            names = [root / split / f"{i % CLASSES}" / f"{i:05}.jpg" for i in range(number)]
            total = sum(pool.map(write_image, names, range(number), chunksize=16))
            if split == "train":
                size = total
    return size


def write_image(path: Path, seed: int) -> int:
    buffer = io.BytesIO()
    Image.fromarray(photograph(seed)).save(buffer, "JPEG", quality=QUALITY)
    return path.write_bytes(buffer.getvalue())


def photograph(seed: int) -> NDArray[np.uint8]:
    """Draws an image with the spectrum of photographs, (HEIGHT, WIDTH, 3)."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH)[None] * WIDTH)
    amplitude = np.maximum(frequency, 1) ** -1.3
    shape = (3, *amplitude.shape)
    noise = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    channels = np.fft.irfft2(noise * amplitude, (HEIGHT, WIDTH))
    channels = channels.mean(0) * 2 + channels * 0.5
    channels = (channels - channels.mean()) / channels.std() * 55 + 118
    pixels: NDArray[np.uint8] = channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels
