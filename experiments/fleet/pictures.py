"""Images in a GPU's memory, all of them: read from a data set, or generated."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from en.data.decoding import UnusableImage, decode_image, read_file
from en.data.sources import Sample, read_source
from en.errors import UserError

GENERATED_CLASSES = 10


@dataclass(frozen=True)
class Split:
    """uint8 images (N, 3, side, side) and labels (N,) on the device."""

    images: Tensor
    labels: Tensor

    def first(self, count: int) -> "Split":
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Pictures:
    """A data set.

    Attributes:
        what: its name in words.
        classes: how many.
    """

    what: str
    classes: int
    train: Split
    val: Split


def read_pictures(where: str, side: int, device: str, workers: int) -> Pictures:
    """The data set at `where`, see en.data.sources: the centre square of each image, resized to `side` pixels.

    Training images are drawn into one order, the same each time, so that a part of them has all classes.
    Raises: UserError.
    """
    source = read_source(where)
    train, val = source.splits["train"], source.splits["val"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    with ProcessPoolExecutor(workers) as pool:
        read = partial(read_split, pool, side, device)
        return Pictures(source.name, len(source.classes), read([train[i] for i in order]), read(val))


def read_split(pool: ProcessPoolExecutor, side: int, device: str, samples: Sequence[Sample]) -> Split:
    squares = pool.map(partial(square, side), samples, chunksize=256)
    images = torch.from_numpy(np.stack(list(squares))).permute(0, 3, 1, 2).contiguous()
    return Split(images.to(device), torch.tensor([sample.target for sample in samples], device=device))


def square(side: int, sample: Sample) -> NDArray[np.uint8]:
    """The centre of an image, (side, side, 3)."""
    if isinstance(sample.image, np.ndarray):
        image = Image.fromarray(sample.image)
    else:
        try:
            content = read_file(sample.image) if isinstance(sample.image, Path) else sample.image.read()
            image = decode_image(content).image
        except UnusableImage as error:
            raise UserError(f"{sample.place}: expected an intact image of a kind that is decoded: {error}") from error
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    centre = image.convert("RGB").crop((left, top, left + shorter, top + shorter))
    return np.asarray(centre.resize((side, side), Image.Resampling.BILINEAR))


def generated(count: int, checked: int, side: int, device: str) -> Pictures:
    """Noise over one of four blurred patterns of each class, shifted: what can be learned, but not at once."""
    train, val = noise(count, 1, side, device), noise(checked, 2, side, device)
    return Pictures("GENERATED images", GENERATED_CLASSES, train, val)


def noise(count: int, seed: int, side: int, device: str) -> Split:
    known = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(GENERATED_CLASSES * 4, 3, 8, 8, generator=known), side)
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % GENERATED_CLASSES
    chosen = patterns[labels * 4 + torch.randint(4, (count,), generator=random)]
    shifts = torch.randint(side, (count, 2), generator=random).tolist()
    shifted = torch.stack(
        [image.roll((down, right), (1, 2)) for image, (down, right) in zip(chosen, shifts, strict=True)]
    )
    noisy = shifted + 2 * torch.randn(shifted.shape, generator=random)
    return Split((noisy * 32 + 128).clamp(0, 255).to(torch.uint8).to(device), labels.to(device))
