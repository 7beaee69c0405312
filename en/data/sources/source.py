"""A data set before preparation, whatever it is read from."""

import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from en.data.palette import Colour
from en.data.targets import ClassIndex, Pixels, Target
from en.errors import UserError

SPLITS = ("train", "val")  # of training
TEST = "test"  # of sets that are only evaluated on
ALL_SPLITS = (*SPLITS, TEST)
EVALUATION = "val or test"  # asks a loader for test where a set has no val


class Packed(Protocol):
    """An image file that is none on disk: a part of another file.

    Those of large sets are tuples of the other file and two numbers, of which `Compact` makes them when they are asked
    for.
    """

    @property
    def in_order(self) -> bool:
        """True where one process that reads them in their order is what reads them fast."""
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
        name: its own in the split, and the same wherever the set lies: its path in the split's folder, or its position
            in an array. In one line: see `name_of`.
        image: the file, a part of a file, or the pixels themselves, (H, W) grey or (H, W, 3).
        target: what the data set says of the image: an index into the classes, or the file or the values of a map.
    """

    name: str
    image: Path | Packed | Pixels
    target: int | Path | Pixels

    @property
    def place(self) -> str:
        """Returns what messages call it: its file, or its name."""
        return as_text(str(self.image)) if isinstance(self.image, Path) else self.name


@dataclass(frozen=True)
class Source:
    """A data set before preparation.

    Attributes:
        name: the data set's, for messages and reports.
        classes: names in the order of their indices.
        splits: the samples of train, val and test, of those that it has, in the order of ALL_SPLITS.
        target: the kind of their targets.
        palette: colours of the classes, for pictures; empty: whichever differ well.
        cropped: images are stored as evaluation shows them, so that it cuts no centre out of them.
        form: what it was recognized as, in words; empty: its name says so.
    """

    name: str
    classes: list[str]
    splits: Mapping[str, Sequence[Sample]]
    target: Target = field(default_factory=ClassIndex)
    palette: list[Colour] = field(default_factory=list)
    cropped: bool = False
    form: str = ""


def choose_split(root: Path, split: str, found: Collection[str]) -> str:
    """The split that is asked for, or of EVALUATION the one that a set has. Raises UserError where it is not there."""
    for name in ("val", TEST) if split == EVALUATION else (split,):
        if name in found:
            return name
    needs = ": expected train and val for training; en-eval RUN --on takes val or test" if split in SPLITS else ""
    raise UserError(f"{root}: no split {split}, only {', '.join(found)}{needs}")


@contextmanager
def naming_unreadable(path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError that names the file, or else `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}: expected to read it") from error


def name_of(path: Path, folder: Path) -> str:
    """A sample's name by its file: the path in a folder, in one line."""
    return as_line(path.relative_to(folder).as_posix())


def is_below(name: str) -> bool:
    """Tells whether a listed path stays below its folder, and is written in the one way that any path can be."""
    return posixpath.normpath(name) == name and name.split("/")[0] not in ("", ".", "..")


def as_line(name: str) -> str:
    """A file's name as text, see `as_text`, that holds no end of a line."""
    return as_text(name).replace("\n", "\\n").replace("\r", "\\r")


def as_text(name: str) -> str:
    """A file's name as text that any file or terminal accepts: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")
