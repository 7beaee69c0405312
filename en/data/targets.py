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

from en.data.decoding import DamagedImage, UnsupportedImage, UnusableImage, read_file, refusal
from en.data.png import bits_of_grey, without_text
from en.data.views import IGNORE as IGNORE
from en.data.views import View
from en.errors import UserError, listed
from en.size import Size, in_words

Pixels = NDArray[np.uint8]
Stored = int | bytes
"""A target as a .beton file keeps it."""
Numbers = int | Pixels
"""A target as it is cut: the class number, or (H, W) of them."""
SHOWN = 4  # unexpected values in a message


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

    def load(self, target: int | Path | Pixels, classes: int, size: Size) -> Numbers:
        """Reads and checks the target of a sample whose image has a size.

        Raises: DamagedImage, UnsupportedImage; UserError for what no file is to blame for.
        """
        ...

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        """Reads and checks it as `load` does, to be kept."""
        ...

    def counts(self, stored: Stored, classes: int) -> NDArray[np.int64]:
        """Counts what it says for each class, and last what it leaves out: (classes + 1,); (0,) for what is none."""
        ...

    def scaled(self, stored: Stored, size: Size) -> Stored:
        """The target of the same image scaled to a size."""
        ...

    def check(self, stored: Stored, size: Size) -> None:
        """Raises DamagedImage for one that belongs to no image of a size, as a foreign file may have it."""
        ...

    def decode(self, stored: Stored) -> Numbers:
        """Decodes what is kept, to be cut once or several times. Raises: DamagedImage, UnsupportedImage."""
        ...

    def cut(self, target: Stored | Numbers, view: View, row: int) -> NDArray[Any]:
        """Cuts what a row of a view shows of it, of the `shape` for the view's size. Raises: as `decode`."""
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

    def load(self, target: int | Path | Pixels, classes: int, size: Size) -> int:
        assert isinstance(target, int)
        return target

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        return self.load(target, classes, size)

    def counts(self, stored: Stored, classes: int) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)

    def scaled(self, stored: Stored, size: Size) -> Stored:
        return stored

    def check(self, stored: Stored, size: Size) -> None:
        return

    def decode(self, stored: Stored) -> int:
        assert isinstance(stored, int)
        return stored

    def cut(self, target: Stored | Numbers, view: View, row: int) -> NDArray[Any]:
        return np.array(target, np.int64)


@dataclass(frozen=True)
class ClassMap:
    """The number of the class of each pixel, (B, H, W) uint8 in a batch, which on the device becomes int64.

    It is kept as a PNG of class numbers, IGNORE for pixels that do not count. A view shows the nearest pixel of the
    map, as torch's mode nearest-exact, and IGNORE beyond it.

    Args:
        values: class number of each value that files may hold, IGNORE for one that does not count; None: they hold
            class numbers.
        ignore: another value in files of pixels that do not count; None: there is no other.
    """

    name: ClassVar[str] = "class_map"
    words: ClassVar[str] = "a map of class numbers for each image"
    field: ClassVar[Field] = Field.BYTES
    dtype: ClassVar[torch.dtype] = torch.uint8

    values: Mapping[int, int] | None = None
    ignore: int | None = IGNORE

    def shape(self, size: Size) -> tuple[int, ...]:
        return size

    def load(self, target: int | Path | Pixels, classes: int, size: Size) -> Pixels:
        """Reads an image of one number a pixel (see `map_of`), or an array of them: class numbers, (H, W)."""
        return self._load(target, classes, size)[0]

    def read(self, target: int | Path | Pixels, classes: int, size: Size) -> Stored:
        """Reads as `load` does. A PNG of 8 bits that holds what is kept is kept as it is, but for texts."""
        numbers, content = self._load(target, classes, size)
        return content or png_of(numbers)

    def counts(self, stored: Stored, classes: int) -> NDArray[np.int64]:
        """Counts the pixels of each class, and last those that do not count."""
        found = np.bincount(self.decode(stored).ravel(), minlength=IGNORE + 1)
        return np.append(found[:classes], found[IGNORE]).astype(np.int64)

    def scaled(self, stored: Stored, size: Size) -> Stored:
        numbers = self.decode(stored)
        height, width = numbers.shape
        whole = View(np.array([[0, 0, height, width]]), np.zeros(1, bool), size)
        return stored if (height, width) == size else png_of(self.cut(numbers, whole, 0))

    def check(self, stored: Stored, size: Size) -> None:
        assert isinstance(stored, bytes)
        try:
            width, height = Image.open(io.BytesIO(stored)).size
        except Exception:  # `decode` says what is wrong with it
            return
        if (height, width) != size:
            raise DamagedImage(f"a map of {height} x {width} pixels: expected {size[0]} x {size[1]}, as the image")

    def decode(self, stored: Stored) -> Pixels:
        numbers = map_of(stored)
        if numbers.dtype != np.uint8:
            raise UnsupportedImage("a map of more than 8 bits a pixel: expected it prepared")
        return numbers.view(np.uint8)

    def cut(self, target: Stored | Numbers, view: View, row: int) -> NDArray[Any]:
        pixels = target if isinstance(target, np.ndarray) else self.decode(target)
        shown = np.full(view.size, IGNORE, np.uint8)
        seen = view.seen(row, *pixels.shape)
        if seen is not None:
            top, left, height, width = seen.box
            starts = (slice(start, start + count) for start, count in zip(seen.start, seen.size, strict=True))
            lines, dots = map(nearest, (height, width), seen.scaled, starts)
            shown[seen.rows, seen.columns] = pixels[top + lines][:, left + dots]  # by far faster than np.ix_
        return shown[:, ::-1] if view.flips[row] else shown

    def _load(self, target: int | Path | Pixels, classes: int, size: Size) -> tuple[Pixels, bytes]:
        """Reads class numbers; beside them their file's content, where that is what is kept."""
        if classes > IGNORE:
            raise UserError(f"{classes} classes: expected at most {IGNORE} for maps of 8 bits")
        assert not isinstance(target, int)
        if not isinstance(target, Path):
            return self._numbers(target, classes, size), b""
        try:
            content = without_text(read_file(target))
            found = map_of(content, verify=True)
            numbers = self._numbers(found, classes, size)
        except UnusableImage as error:
            raise type(error)(f"{target}: {error}") from error
        return numbers, content if bits_of_grey(content) == 8 and np.array_equal(numbers, found) else b""

    def _numbers(self, held: NDArray[Any], classes: int, size: Size) -> Pixels:
        """The class numbers of a file's values. Raises: DamagedImage for another size, or values that are not known."""
        if held.shape != size:
            form = " x ".join(map(str, held.shape))
            raise DamagedImage(f"a map of {form} pixels: expected {in_words(size)}, as the image")
        table = self._table(classes)
        if held.dtype == np.uint8:
            numbers = table[held]
        else:
            numbers = table[np.where((held < 0) | (held >= len(table)), len(table) - 1, held)]
        if (numbers < 0).any():
            values = listed([str(value) for value in np.unique(held[numbers < 0])], SHOWN)
            raise DamagedImage(f"the map holds {values}: expected {ranges(np.flatnonzero(table >= 0).tolist())}")
        kept: Pixels = numbers.astype(np.uint8)
        return kept

    def _table(self, classes: int) -> NDArray[np.int16]:
        """The number that is kept of each value of a file; -1 for one that is not expected, as the last one is not."""
        values = {number: number for number in range(classes)} if self.values is None else self.values
        table = np.full(max(*values, self.ignore or 0, 255) + 2, -1, np.int16)
        for value, number in values.items():
            table[value] = number if number < classes or number == IGNORE else -1
        if self.ignore is not None:
            table[self.ignore] = IGNORE
        return table


def ranges(numbers: list[int]) -> str:
    """Numbers in ascending order in words: `0 to 10, or 255`."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    parts = [str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=True)]
    return ", or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def nearest(length: int, count: int, place: slice) -> NDArray[np.int64]:
    """Returns which of `length` pixels, scaled to `count`, each of those in a place shows: the one under its centre."""
    centres: NDArray[np.int64] = (2 * np.arange(place.start, place.stop) + 1) * length // (2 * count)
    return centres


def map_of(content: Stored, verify: bool = False) -> NDArray[Any]:
    """Decodes an image of one number a pixel, grey of up to 32 bits, or of a palette: the numbers that it holds.

    Pillow spreads greys of 2 and 4 bits over 0 to 255; that is undone. Palettes count by their indices.

    Args:
        verify: compares the checksums of a PNG, which Pillow's decoder ignores.
    Raises: DamagedImage; UnsupportedImage for colours, alpha, and formats that change numbers.
    """
    assert isinstance(content, bytes)
    try:
        image = Image.open(io.BytesIO(content))
        if verify and image.format == "PNG":
            Image.open(io.BytesIO(content)).verify()
        image.load()
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise DamagedImage(f"the map: {refusal(content, error)}") from error
    wide = image.mode == "I" or image.mode.startswith("I;16")
    if image.format != "PNG" and not (image.format == "TIFF" and wide):
        # Others change numbers, or Pillow spreads or inverts them without a word.
        raise UnsupportedImage(f"a map as {image.format}: expected PNG, or TIFF of 16 or 32 bits")
    pixels = np.asarray(image)
    if wide:
        return pixels.astype(np.int64)
    if image.mode not in ("1", "L", "P"):
        raise UnsupportedImage(
            f"a map of mode {image.mode}: expected one number a pixel, grey or of a palette (modes 1, L, P, I;16, I), "
            "and no colours or alpha"
        )
    bits = bits_of_grey(content)
    step = 255 // ((1 << bits) - 1) if bits in (2, 4) else 1
    return (pixels // step if step > 1 else pixels).astype(np.uint8, copy=False)


def png_of(numbers: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(numbers)).save(buffer, "PNG")
    return buffer.getvalue()


TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (ClassIndex, ClassMap)}
BY_FIELD: dict[Field, type[Target]] = {Field.INT: ClassIndex, Field.BYTES: ClassMap}
"""Kinds that the files of others, which do not tell, are taken to hold."""
