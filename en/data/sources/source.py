"""A data set before preparation, whatever it is read from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from en.errors import UserError

SPLITS = ("train", "val")

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
