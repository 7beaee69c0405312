"""Where images come from before preparation: class folders, a list file, Fashion-MNIST's files."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    with reading_errors_told(path):
        if path.is_file():
            return read_list(path)
        if not path.is_dir():
            raise UserError(f"{where}: expected a folder with train/ and val/, a list file, or fashion-mnist")
        if (path / "train-images-idx3-ubyte.gz").is_file():
            return fashion_mnist(path)
        return read_folders(path)


def read_folders(root: Path) -> Source:
    """Samples of root/{train,val}/CLASS/**, in sorted order; classes are train's folders.

    One rule for what is in them: names that begin with "." or "@" are passed over, links to folders are followed, and all
    else in a class folder is a sample, a dangling link too. What cannot be read as this form is refused.

    Raises: UserError.
    """
    with reading_errors_told(root):
        folders = {split: class_folders(root / split) for split in SPLITS}
        classes = sorted(folders["train"])
        refuse_other_classes(root, classes, set(folders["val"]))
        splits = {split: list(folder_samples(folders[split], classes)) for split in SPLITS}
        if not splits["val"]:
            raise UserError(f"{root / 'val'}: expected image files in its class folders, found none")
    return Source(as_text(root.resolve().name), classes, splits)


@contextmanager
def reading_errors_told(path: Path) -> Iterator[None]:
    """Makes a UserError of what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}: expected to read it") from error


def as_text(name: str) -> str:
    """A file's name as text that any file and terminal takes: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "@"))  # @eaDir holds a network storage's thumbnails


def class_folders(split: Path) -> dict[str, Path]:
    """The class folders of a split by name. Raises: UserError for anything else that is not hidden."""
    if not split.is_dir():
        raise UserError(f"{split}: expected a folder with one folder of images for each class")
    found = sorted(path for path in split.iterdir() if not is_hidden(path))
    for path in found:
        if not path.is_dir():
            raise UserError(f"{as_text(str(path))}: expected only class folders in {split}, found a file or a dangling link")
        if as_text(path.name) != path.name:
            raise UserError(f"{as_text(str(path))}: expected a class name in UTF-8")
    if not found:
        raise UserError(f"{split}: expected one folder of images for each class, found none")
    return {path.name: path for path in found}


def refuse_other_classes(root: Path, classes: list[str], val: set[str]) -> None:
    unknown, missing = sorted(val - set(classes)), sorted(set(classes) - val)
    if unknown:
        raise UserError(f"{root / 'val' / unknown[0]}: expected the classes of {root / 'train'}, which has no {unknown[0]!r}")
    if missing:
        raise UserError(f"{root / 'val' / missing[0]}: no such folder: expected one for every class of {root / 'train'}")


def folder_samples(folders: dict[str, Path], classes: list[str]) -> Iterator[Sample]:
    for label, name in enumerate(classes):
        files = list(files_below(folders[name], ()))
        if not files and folders[name].parent.name == "train":
            raise UserError(f"{folders[name]}: expected image files, found none")
        yield from (Sample(as_text(str(path)), path, label) for path in files)


def files_below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """What is in a folder and its subfolders, sorted; `above` are the folders on the way to it."""
    place = folder.resolve()
    if place in above:
        raise UserError(f"{as_text(str(folder))}: expected a folder, found a link to one that it is in")
    for path in sorted(folder.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            yield from files_below(path, (*above, place))
        else:
            yield path


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
    return Source(as_text(path.stem), classes, splits)


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
