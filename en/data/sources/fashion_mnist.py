"""Fashion-MNIST's four gzipped idx files."""

import gzip
from pathlib import Path

import numpy as np

from en.data.sources.source import Sample, Source
from en.data.targets import Pixels
from en.errors import UserError

FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
FASHION_MNIST_FILES = {"train": "train", "val": "t10k"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def find_fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's files: Debian's package if installed, else torchvision's download into data/."""
    if DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST("data", download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"fashion-mnist: expected Debian's dataset-fashion-mnist or a download, which failed: {error}"
        ) from error
    return Path("data/FashionMNIST/raw")


def is_fashion_mnist(path: Path) -> bool:
    return (path / "train-images-idx3-ubyte.gz").is_file()


def read_fashion_mnist(folder: Path) -> Source:
    """Reads Fashion-MNIST from its four idx files: 60,000 and 10,000 grey images of 28 x 28 pixels.

    Raises: UserError.
    """
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
    """Reads the array in a gzipped idx file of unsigned bytes. Raises: UserError."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: expected a gzipped idx file: {error}") from error
    dimensions = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    if not dimensions or len(content) != 4 + 4 * dimensions + shape.prod():
        raise UserError(f"{path}: expected an idx file of unsigned bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
