"""A data set before preparation, whatever it is read from."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from en.data.palette import Colour
from en.data.targets import ClassIndex, Pixels, Target
from en.errors import UserError

SPLITS = ("train", "val")


class Packed(Protocol):
    """An image file that is none on disk: a part of another file.

    Those of large sets are tuples of the other file and two numbers, of which `Compact` makes them when they are asked
    for.
    """

    @property
    def in_order(self) -> bool:
        """Whether one process that reads them in their order is what reads them fast."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def read(self) -> bytes:
        """Reads the image file. Raises: DamagedImage for one that cannot be read."""
        ...


@dataclass(frozen=True)
class Sample:
    """One image to be prepared.

    Attributes:
        name: what messages call it: its path, or its position in an array.
        image: the file, a part of a file, or the pixels themselves, (H, W) grey or (H, W, 3).
        target: what the data set says of the image: an index into the classes, or the file or the values of a map.
    """

    name: str
    image: Path | Packed | Pixels
    target: int | Path | Pixels


@dataclass(frozen=True)
class Source:
    """A data set before preparation.

    Attributes:
        name: the data set's, for messages and reports.
        classes: names in the order of their indices.
        splits: the samples of train and val.
        target: the kind of their targets.
        palette: colours of the classes, for pictures; empty: whichever differ well.
        form: what it was recognized as, in words; empty: its name says so.
    """

    name: str
    classes: list[str]
    splits: Mapping[str, Sequence[Sample]]
    target: Target = field(default_factory=ClassIndex)
    palette: list[Colour] = field(default_factory=list)
    form: str = ""


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError that names the file, or else `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}: expected to read it") from error


def as_text(name: str) -> str:
    """A file's name as text that any file or terminal accepts: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")
