"""The loaders of images with masks against Pillow with torchvision's functionals: images a second."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from en.benchmarks.loader import FFCV, FOLDER, row_of, timed
from en.benchmarks.photographs import KINDS, encode, noise, picture
from en.benchmarks.timing import hardware, show, write
from en.data import LOADERS, Part, Reading
from en.data.crops import REDRAWN, ScaledCrop
from en.data.palette import Colour
from en.data.sources import read_source
from en.data.targets import IGNORE, png_of
from en.progress import Progress
from en.size import Size

CLASSES, BATCH = 150, 16
SIZE: Size = (512, 512)
SCALE, BASE = (0.5, 2.0), (512, 2048)  # mmsegmentation's for ADE20K
MOST, FLIP, MEAN = 0.75, 0.5, (124, 116, 104)
FUNCTIONALS = "Pillow and v2"
Epoch = Callable[[], Iterable[Any]]


def benchmark_masks(images: int, photos: Path | None, workers: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of whole epochs by loader, also by CPU time, of JPEG and of PNG images with PNG masks.

    Args:
        photos: a folder of JPEGs, of which mosaics are made; None: noise with the spectrum of photographs.
    """
    where = hardware("cpu", workers).replace("threads", "workers")
    print(f"{where}; load {os.getloadavg()[0]:.1f}; {'noise' if photos is None else 'mosaics of photographs'}")
    report = []
    for end in ("jpg", "png"):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            make_pairs(root / "folder", end, photos, images, workers)
            seconds, cpu = measured(root, workers, rounds)
        rows = [row_of(name, images // BATCH * BATCH, seconds, cpu) for name in seconds]
        show(f"{end}, {KINDS[0]}, crops of {SIZE[0]} x {SIZE[1]}; load {os.getloadavg()[0]:.1f}", rows)
        report.append({"images": end, "rows": rows})
    write(out, {"hardware": where, "images": images, "photos": str(photos), "measured": report})


def make_pairs(root: Path, end: str, photos: Path | None, count: int, workers: int) -> None:
    """Writes root/{images,masks}/{train,val}/* and the table of classes."""
    for split, numbers in (("train", range(count)), ("val", range(count, count + 1))):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(partial(write_pair, root, split, end, photos), numbers, chunksize=16))
    (root / "classes.txt").write_text(
        "\n".join(f"{number} class {number}" for number in range(CLASSES)) + "\n255 ignore\n"
    )


def write_pair(root: Path, split: str, end: str, photos: Path | None, number: int) -> None:
    image = picture(photos, number, KINDS[0])
    path = root / "images" / split / f"{number:05}.{end}"
    if end == "jpg":
        path.write_bytes(encode(image, KINDS[0]))
    else:
        image.save(path)
    (root / "masks" / split / f"{number:05}.png").write_bytes(png_of(regions(number, image.height, image.width)))


def regions(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draws a mask of some ten classes in large regions with ragged borders, (height, width)."""
    small = Image.fromarray(noise(seed, height, width)).resize((width // 8, height // 8)).resize((width, height))
    levels = np.asarray(small)[..., 0] // 24
    chosen: NDArray[np.uint8] = np.random.default_rng(seed).integers(0, CLASSES, 11).astype(np.uint8)[levels]
    return chosen


def measured(root: Path, workers: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Goes through an epoch of each loader in turns. Returns: by loader, seconds of each round, and the processors'."""
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import prepare

    with redirect_stdout(StringIO()):  # what its masks hold
        prepare(read_source(str(root / "folder")), root / "prepared", Storage(), workers, skip_corrupt=False)
    epochs = {
        FFCV: ours(FFCV, root / "prepared", workers),
        FOLDER: ours(FOLDER, root / "folder", workers),
        FUNCTIONALS: functionals(root / "folder", workers),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
    with Progress("loaders", rounds + 1) as progress:
        for _ in range(rounds + 1):  # the first one warms up
            for name, epoch in epochs.items():
                taken[name].append(timed(epoch))
            progress.advance()
    wall, cpu = ({name: [one[place] for one in all_of[1:]] for name, all_of in taken.items()} for place in (0, 1))
    return wall, cpu


def ours(kind: str, root: Path, workers: int) -> Epoch:
    crop = ScaledCrop(SCALE, FLIP, BASE, MOST)
    reading = Reading(Part(BATCH, 1, 0, 1, 0), crop, crop, workers, 60, False, padding=MEAN)
    loader, numbers = LOADERS[kind](root, "train", reading), itertools.count()
    return lambda: loader.train_epoch(next(numbers), SIZE)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pillow's images and masks, scaled, cut, padded and mirrored by torchvision's functionals of Pillow's images."""

    def __init__(self, root: Path) -> None:
        self.samples = read_source(str(root)).splits["train"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import functional as f

        sample = self.samples[index]
        assert isinstance(sample.image, Path) and isinstance(sample.target, Path)
        image, mask = Image.open(sample.image).convert("RGB"), Image.open(sample.target)
        random = np.random.default_rng(int(torch.randint(1 << 31, ())))
        sides = np.array([image.height, image.width])
        factor = random.uniform(*SCALE) * (np.sort(BASE) / np.sort(sides)).min()
        scaled = np.floor(sides * factor + 0.5).astype(int).tolist()
        image = f.resize(image, scaled, f.InterpolationMode.BILINEAR)
        mask = f.resize(mask, scaled, f.InterpolationMode.NEAREST)  # of Pillow: aligned
        top, left = self.place(mask, random)
        image, mask = (f.crop(each, top, left, *extent(scaled, top, left)) for each in (image, mask))
        if random.random() < FLIP:
            image, mask = f.horizontal_flip(image), f.horizontal_flip(mask)
        return f.pil_to_tensor(padded(image, MEAN)), f.pil_to_tensor(padded(mask, IGNORE))[0]

    def place(self, mask: Image.Image, random: np.random.Generator) -> tuple[int, int]:
        """Draws where the part begins, again up to ten times if one class fills it."""
        pixels = np.asarray(mask)
        room = np.maximum(0, np.array(pixels.shape) - SIZE) + 1
        for _ in range(REDRAWN + 1):
            top, left = random.integers(0, room).tolist()
            counts = np.bincount(pixels[top : top + SIZE[0], left : left + SIZE[1]].ravel(), minlength=256)[:IGNORE]
            if (counts > 0).sum() > 1 and counts.max() < MOST * counts.sum():
                break
        return top, left


def extent(scaled: list[int], top: int, left: int) -> tuple[int, int]:
    return min(SIZE[0], scaled[0] - top), min(SIZE[1], scaled[1] - left)


def padded(image: Image.Image, fill: Colour | int) -> Image.Image:
    from torchvision.transforms.v2 import functional as f

    if image.size == SIZE[::-1]:
        return image
    filled: Image.Image = f.pad(image, [0, 0, SIZE[1] - image.width, SIZE[0] - image.height], fill=fill)
    return filled


def functionals(root: Path, workers: int) -> Epoch:
    loader = DataLoader(
        Pairs(root), BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return partial(iter, loader)
