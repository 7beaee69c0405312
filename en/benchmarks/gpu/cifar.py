"""Images of 32 x 32 pixels in 10 classes: CIFAR-10's python pickles, or generated ones."""

import codecs
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from en.errors import UserError

SIDE, CLASSES = 32, 10
RECONSTRUCT = np.zeros(0).__reduce__()[0]
ALLOWED = {  # all that arrays need, as numpy wrote them when CIFAR-10 was made and as it does today
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


@dataclass(frozen=True)
class Split:
    """uint8 images (N, 3, 32, 32) and labels (N,) on the device."""

    images: Tensor
    labels: Tensor


class ArraysOnly(pickle.Unpickler):
    """Reads pickles that hold arrays, lists, strings and numbers; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"--images: expected CIFAR-10's pickles, found one with {module}.{name}")
        return ALLOWED[module, name]


def read_pickles(folder: Path, device: str) -> tuple[Split, Split]:
    """Training and test images. Raises UserError for a folder without them."""
    training, test = sorted(folder.rglob("data_batch_*")), sorted(folder.rglob("test_batch"))
    if not training or not test:
        raise UserError(f"--images {folder}: expected files data_batch_* and test_batch, CIFAR-10's python version")
    return read_batches(training, device), read_batches(test, device)


def read_batches(paths: list[Path], device: str) -> Split:
    batches = list(map(read_batch, paths))
    images = torch.cat([torch.from_numpy(data) for data, _ in batches])
    labels = torch.cat([torch.tensor(labels) for _, labels in batches])
    return Split(images.view(-1, 3, SIDE, SIDE).to(device), labels.to(device))


def read_batch(path: Path) -> tuple[Any, list[int]]:
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
        data, labels = np.ascontiguousarray(content[b"data"], np.uint8), [int(label) for label in content[b"labels"]]
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a batch of CIFAR-10: {type(error).__name__}: {error}") from error
    if data.shape != (len(labels), 3 * SIDE * SIDE) or not all(0 <= label < CLASSES for label in labels):
        raise UserError(f"{path}: expected images of 3 x 32 x 32 values in 10 classes, found {data.shape}")
    return data, labels


def generated(count: int, seed: int, device: str) -> Split:
    """Noise over one of four blurred patterns of each class, shifted: what can be learned, but not at once."""
    patterns = F.interpolate(torch.randn(CLASSES * 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), SIDE)
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    chosen = patterns[labels * 4 + torch.randint(4, (count,), generator=random)]
    shifts = torch.randint(SIDE, (count, 2), generator=random).tolist()
    shifted = torch.stack(
        [image.roll((down, right), (1, 2)) for image, (down, right) in zip(chosen, shifts, strict=True)]
    )
    noisy = shifted + 2 * torch.randn(shifted.shape, generator=random)
    return Split((noisy * 32 + 128).clamp(0, 255).to(torch.uint8).to(device), labels.to(device))


def batches(split: Split, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of whole training batches in a drawn order, each shifted by up to 4 pixels and perhaps flipped."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split.labels), generator=random).to(split.labels.device)
    for chosen in torch.split(order, size):
        if len(chosen) == size:
            down, right, flip = torch.randint(9, (3,), generator=random).tolist()
            images = F.pad(scaled(split.images[chosen]), (4, 4, 4, 4))[..., down : down + SIDE, right : right + SIDE]
            yield images.flip(3) if flip % 2 else images, split.labels[chosen]


def scaled(images: Tensor) -> Tensor:
    """uint8 images as the network's input."""
    return images.float().sub_(121).div_(64).contiguous(memory_format=torch.channels_last)
