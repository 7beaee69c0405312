"""Where images come from before preparation: class folders, a list file, Fashion-MNIST's files."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from en.errors import UserError

SPLITS = ("train", "val")
FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
FASHION_MNIST_FILES = {"train": "train", "val": "t10k"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One image to be prepared.

    Attributes:
        name: what messages call it: its path, or its place in an array.
        image: the file, or the pixels themselves, (H, W) grey or (H, W, 3).
        label: index into the classes.
    """

    name: str
    image: Path | Pixels
    label: int


@dataclass(frozen=True)
class Source:
    """A data set before preparation: a name, its classes in the order of the labels, and the samples of train and val."""

    name: str
    classes: list[str]
    splits: dict[str, list[Sample]]


def read_source(where: str) -> Source:
    """The data set at `where`.

    Args:
        where: a folder with train/CLASS/ and val/CLASS/ inside; a list file, each line `train|val path class`, paths
            relative to the file's folder; a folder with Fashion-MNIST's four .gz files; or the word fashion-mnist, for
            Debian's package dataset-fashion-mnist, else torchvision's download into the folder data/.
    Raises: UserError.
    """
    path = Path(where)
    if where == "fashion-mnist":
        return fashion_mnist(find_fashion_mnist())
    if path.is_file():
        return read_list(path)
    if not path.is_dir():
        raise UserError(f"{where}: expected a folder with train/ and val/, a list file, or fashion-mnist")
    if (path / "train-images-idx3-ubyte.gz").is_file():
        return fashion_mnist(path)
    return read_folders(path)


def read_folders(root: Path) -> Source:
    """Samples of root/{train,val}/CLASS/**, in sorted order; classes are train's folders. Hidden files are passed over."""
    classes = sorted(folder.name for folder in subfolders(root / "train"))
    unknown = sorted({folder.name for folder in subfolders(root / "val")} - set(classes))
    if unknown:
        raise UserError(f"{root / 'val' / unknown[0]}: expected the classes of {root / 'train'}, which has no {unknown[0]!r}")
    splits = {split: list(folder_samples(root / split, classes)) for split in SPLITS}
    for split, samples in splits.items():
        if not samples:
            raise UserError(f"{root / split}: expected image files in its class folders, found none")
    return Source(root.resolve().name, classes, splits)


def subfolders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder with one folder of images for each class")
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise UserError(f"{root}: expected one folder of images for each class, found none")
    return folders


def folder_samples(split: Path, classes: list[str]) -> Iterator[Sample]:
    for label, name in enumerate(classes):
        files = sorted(path for path in (split / name).rglob("*") if path.is_file() and not path.name.startswith("."))
        yield from (Sample(str(path), path, label) for path in files)
        if not files and split.name == "train":
            raise UserError(f"{split / name}: expected image files, found none")


def read_list(path: Path) -> Source:
    """Samples of a list file: `train|val path class` on each line, separated by tabs or spaces; # starts a comment."""
    rows: list[tuple[str, Path, str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a text file, each line `train|val path class`") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t") if "\t" in line else line.split(maxsplit=1)[:1] + line.split(maxsplit=1)[-1].rsplit(maxsplit=1)
        if len(parts) != 3 or parts[0] not in SPLITS:
            raise UserError(f"{path}:{number}: {line!r}: expected `train|val path class`")
        rows.append((parts[0], path.parent / parts[1], parts[2]))
    classes = sorted({name for split, _, name in rows if split == "train"})
    for split in SPLITS:
        if not any(row[0] == split for row in rows):
            raise UserError(f"{path}: expected lines for train and for val, found none for {split}")
    for _, image, name in rows:
        if name not in classes:
            raise UserError(f"{path}: class {name!r} of {image}: expected a class that train has too")
    label = {name: index for index, name in enumerate(classes)}
    splits = {s: [Sample(str(image), image, label[name]) for split, image, name in rows if split == s] for s in SPLITS}
    return Source(path.stem, classes, splits)


def find_fashion_mnist() -> Path:
    """Fashion-MNIST's files: Debian's package where it is installed, else torchvision's download into data/."""
    if DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST("data", download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(f"fashion-mnist: expected Debian's dataset-fashion-mnist or a download, which failed: {error}") from error
    return Path("data/FashionMNIST/raw")


def fashion_mnist(folder: Path) -> Source:
    """Fashion-MNIST from its four idx files: 60,000 and 10,000 grey images of 28 x 28 pixels."""
    splits = {}
    for split, prefix in FASHION_MNIST_FILES.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"{folder}: expected as many labels as images, found {labels.shape} and {images.shape}")
        pairs = enumerate(zip(images, labels, strict=True))
        splits[split] = [Sample(f"{prefix}[{i}]", image, int(label)) for i, (image, label) in pairs]
    return Source("Fashion-MNIST", FASHION_MNIST_CLASSES, splits)


def read_idx(path: Path) -> Pixels:
    """The array in a gzipped idx file of unsigned bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: expected a gzipped idx file: {error}") from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    if not dimensions or len(content) != 4 + 4 * dimensions + shape.prod():
        raise UserError(f"{path}: expected an idx file of unsigned bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
