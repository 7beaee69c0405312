"""Targets, which a data set says of its images: a class number, or one for each pixel."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from en.data.decoding import DamagedImage, UnsupportedImage, read_file, words
from en.data.png import without_text
from en.data.views import View
from en.errors import UserError
from en.size import Size, in_words

Pixels = NDArray[np.uint8]
Stored = int | bytes
"""A target as a .beton file keeps it."""
IGNORE = 255  # in a map: a pixel that does not count


class Field(IntEnum):
    """How a .beton file keeps a target, by FFCV's numbers: IntField, BytesField."""

    INT = 1
    BYTES = 3


class Target(Protocol):
    """A kind of target. Its class, named in TARGETS, is made without arguments to read what is prepared.

    Attributes:
        name: in TARGETS and in dataset.json.
        words: what it is of an image, for messages.
        field: how a .beton file keeps it.
        dtype: of a batch of them.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    field: ClassVar[Field]
    dtype: ClassVar[torch.dtype]

    def shape(self, size: Size) -> tuple[int, ...]:
        """The shape of one in a batch of images of a size."""
        ...

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        """Reads and checks the target of a sample whose image has a size.

        Raises: DamagedImage, UnsupportedImage; UserError for what no file is to blame for.
        """
        ...

    def scaled(self, stored: Stored, size: Size) -> Stored:
        """The target of the same image scaled to a size."""
        ...

    def check(self, stored: Stored, size: Size) -> None:
        """Raises DamagedImage for one that belongs to no image of a size, as a foreign file may have it."""
        ...

    def cut(self, stored: Stored, view: View, row: int) -> NDArray[Any]:
        """Cuts what a row of a view shows of it, of the `shape` for the view's size. Raises: DamagedImage."""
        ...


@dataclass(frozen=True)
class ClassIndex:
    """The number of the class of the image, (B,) int64 in a batch: no view changes it."""

    name: ClassVar[str] = "class_index"
    words: ClassVar[str] = "a class number for each image"
    field: ClassVar[Field] = Field.INT
    dtype: ClassVar[torch.dtype] = torch.int64

    def shape(self, size: Size) -> tuple[int, ...]:
        return ()

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        assert isinstance(target, int)
        return target

    def scaled(self, stored: Stored, size: Size) -> Stored:
        return stored

    def check(self, stored: Stored, size: Size) -> None:
        return

    def cut(self, stored: Stored, view: View, row: int) -> NDArray[Any]:
        return np.array(stored, np.int64)


@dataclass(frozen=True)
class ClassMap:
    """The number of the class of each pixel, (B, H, W) uint8 in a batch, which on the device becomes int64.

    It is kept as a PNG of class numbers, IGNORE for pixels that do not count. A view shows the nearest pixel of the
    map, as torch's mode nearest-exact, and IGNORE beyond it.

    Args:
        values: class number of each value that files may hold; None: they hold class numbers.
        ignore: value in files of pixels that do not count.
    """

    name: ClassVar[str] = "class_map"
    words: ClassVar[str] = "a map of class numbers for each image"
    field: ClassVar[Field] = Field.BYTES
    dtype: ClassVar[torch.dtype] = torch.uint8

    values: Mapping[int, int] | None = None
    ignore: int = IGNORE

    def shape(self, size: Size) -> tuple[int, ...]:
        return size

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        """Reads a PNG or another image of one 8-bit number a pixel (modes L and P of Pillow), or an array of them.

        A PNG that holds what is kept is kept as it is, but for texts.
        """
        if classes > IGNORE:
            raise UserError(f"{classes} classes: expected at most {IGNORE} for maps of 8 bits")
        assert not isinstance(target, int)
        content = without_text(read_file(target)) if isinstance(target, Path) else b""
        found = map_of(content) if isinstance(target, Path) else target
        if found.shape != size:
            form = " x ".join(map(str, found.shape))
            raise DamagedImage(f"a map of {form} pixels: expected {in_words(size)}, as the image")
        numbers = self._table(classes)[found]
        if (numbers < 0).any():
            known = f"0 to {classes - 1}" if self.values is None else "one of its data set's values"
            raise DamagedImage(f"the map holds {found[numbers < 0][0]}: expected {known}, or {self.ignore}")
        as_kept = content.startswith(b"\x89PNG") and np.array_equal(numbers, found)
        return content if as_kept else png_of(numbers.astype(np.uint8))

    def scaled(self, stored: Stored, size: Size) -> Stored:
        height, width = map_of(stored).shape
        whole = View(np.array([[0, 0, height, width]]), np.zeros(1, bool), size)
        return stored if (height, width) == size else png_of(self.cut(stored, whole, 0))

    def check(self, stored: Stored, size: Size) -> None:
        assert isinstance(stored, bytes)
        try:
            width, height = Image.open(io.BytesIO(stored)).size
        except Exception:  # `cut` says what is wrong with it
            return
        if (height, width) != size:
            raise DamagedImage(f"a map of {height} x {width} pixels: expected {size[0]} x {size[1]}, as the image")

    def cut(self, stored: Stored, view: View, row: int) -> NDArray[Any]:
        pixels = map_of(stored)
        shown = np.full(view.size, IGNORE, np.uint8)
        seen = view.seen(row, *pixels.shape)
        if view.windows is not None:
            window, scaled = view.windows[row, :2].tolist(), view.windows[row, 2:].tolist()
            places = [slice(start, start + count) for start, count in zip(window, view.size, strict=True)]
            lines, dots = (nearest(*axis) for axis in zip(pixels.shape, scaled, places, strict=True))
            shown[:] = pixels[np.ix_(lines, dots)]
        elif seen is not None:
            top, left, height, width = seen.box
            count = seen.rows.stop - seen.rows.start, seen.columns.stop - seen.columns.start
            lines = top + nearest(height, count[0], slice(count[0]))
            dots = left + nearest(width, count[1], slice(count[1]))
            shown[seen.rows, seen.columns] = pixels[np.ix_(lines, dots)]
        return shown[:, ::-1] if view.flips[row] else shown

    def _table(self, classes: int) -> NDArray[np.int16]:
        """The number that is kept of each value of a file; -1 for one that is not expected."""
        table = np.full(256, -1, np.int16)
        for value, number in (self.values or {number: number for number in range(classes)}).items():
            table[value] = number if number < classes or number == IGNORE else -1
        table[self.ignore] = IGNORE
        return table


def nearest(length: int, count: int, place: slice) -> NDArray[np.int64]:
    """Which of `length` pixels, scaled to `count`, is shown by each of those in a place: the one under its centre."""
    centres: NDArray[np.int64] = (2 * np.arange(count)[place] + 1) * length // (2 * count)
    return centres


def map_of(content: Stored) -> Pixels:
    """Decodes an image of one 8-bit number a pixel, or of a palette. Raises: DamagedImage, UnsupportedImage."""
    assert isinstance(content, bytes)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise DamagedImage(f"the map: {words(error)}") from error
    if image.mode not in ("L", "P"):
        raise UnsupportedImage(f"a map of mode {image.mode}: expected one 8-bit number a pixel, mode L or P")
    return np.asarray(image)


def png_of(numbers: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(numbers)).save(buffer, "PNG")
    return buffer.getvalue()


TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (ClassIndex, ClassMap)}
BY_FIELD: dict[Field, type[Target]] = {Field.INT: ClassIndex, Field.BYTES: ClassMap}
"""Kinds that the files of others, which do not tell, are taken to hold."""
