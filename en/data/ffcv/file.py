"""FFCV's file: written in the samples' order, read with every decode checked.

Stock FFCV reads these files, and this module reads stock files that have an RGB image and an integer label, or bytes.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from en.data.ffcv.tables import (
    ALLOCATION,
    CHECKSUM,
    CHECKSUMS,
    FIELD,
    HEADER,
    IMAGES,
    JPEG,
    METADATA,
    NAMES,
    RAW,
    SAMPLES,
    VERSION,
    Table,
    read_tables,
    sealed,
    tables_digest,
)
from en.data.jpeg import Images, decode
from en.data.jpeg_kind import unusual_kind
from en.data.order import Ints
from en.data.palette import Colour, varied
from en.data.showing import Decoder, show
from en.data.sources import SPLITS
from en.data.sources.source import as_text
from en.data.targets import BY_FIELD, TARGETS, Field, Stored, Target
from en.data.views import View
from en.errors import RunError, UserError, shown

PAGE = 1 << 23  # bytes, FFCV's default: no sample smaller than a page crosses a page boundary

LONGEST_NAME = 900  # characters; a summary has room for it and what preparation changed

__all__ = ["JPEG", "RAW", "BetonFile", "BetonWriter", "Encoded", "Kept", "read_classes", "read_name", "write_beton"]


class Encoded(NamedTuple):
    """One stored sample: JPEG or raw, the image's size in pixels, its bytes, and the target."""

    mode: int
    width: int
    height: int
    content: bytes
    target: Stored


class Kept(NamedTuple):
    """Says where a stored sample lies in its file: what `Encoded` says of it, without the bytes.

    Attributes:
        mode, width, height: as in Encoded.
        target: the class number; 0 where the target is kept as bytes.
        places: offset and size of the image's bytes, and of the target's where it is kept as bytes.
        checksum: CRC-32 of all of them.
    """

    mode: int
    width: int
    height: int
    target: int
    places: tuple[tuple[int, int], ...]
    checksum: int


class BetonWriter:
    """Writes a .beton file in the order of its samples, or goes on with one that was left unfinished.

    Memory holds some 60 bytes a sample.

    Args:
        at_most: upper limit of the number of samples.
        field: how their targets are kept.
    Raises: OSError, e.g. when the disk is full; so do all its methods.
    """

    def __init__(self, path: Path, at_most: int, field: Field = Field.INT) -> None:
        self._field, self._count, self._places = field, 0, 0
        self._metadata = np.zeros(at_most, SAMPLES[field])
        self._checksums = np.zeros(at_most, CHECKSUM)
        self._table = np.zeros(at_most * (2 if field is Field.BYTES else 1), ALLOCATION)
        self._at = next_page(METADATA + self._metadata.nbytes)
        path.touch()
        self._file = path.open("r+b")

    def add(self, sample: Encoded) -> Kept:
        """Writes a sample after those that there are. Returns: where it lies."""
        places, checksum, at = [], 0, self._at
        for content in (sample.content, sample.target):
            if not isinstance(content, bytes):
                continue  # a class number, which stands in the metadata
            size = len(content)
            at = next_page(at) if at % PAGE + size > PAGE else at
            self._file.seek(at)
            self._file.write(content)
            places.append((at, size))
            at += size
            checksum = zlib.crc32(content, checksum)
        target = sample.target if isinstance(sample.target, int) else 0
        kept = Kept(sample.mode, sample.width, sample.height, target, tuple(places), checksum)
        self.keep(kept)
        return kept

    def keep(self, kept: Kept) -> None:
        """Counts a sample whose bytes are in the file already, the next in its order."""
        for at, size in kept.places:
            self._table[self._places] = (self._count, at, size)
            self._places += 1
            self._at = at + size
        target = kept.places[1] if self._field is Field.BYTES else kept.target
        self._metadata[self._count] = ((kept.mode, kept.width, kept.height, kept.places[0][0]), target)
        self._checksums[self._count] = kept.checksum
        self._count += 1

    def cut(self) -> None:
        """Cuts off what follows the samples: a process that was killed may have written more than it noted."""
        self._file.truncate(self._at if self._count else 0)

    def flush(self) -> None:
        """Flushes the samples to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> int:
        """Writes the tables and flushes the file to disk. Returns: the number of samples."""
        table, metadata = self._table[: self._places], self._metadata[: self._count]
        self._file.seek(self._at)
        self._file.write(self._checksums[: self._count].tobytes())
        at = self._file.tell()
        self._file.write(table.tobytes())
        self._file.truncate()
        header = np.array([(VERSION, 2, PAGE, self._count, at)], HEADER)
        fields = field_descriptions(self._field)
        fields = sealed(fields, tables_digest(header, fields, metadata, table))
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())
        self.flush()
        return self._count

    def close(self) -> None:
        self._file.close()


def write_beton(path: Path, samples: Iterable[Encoded], at_most: int, field: Field = Field.INT) -> int:
    """Writes the samples to `path`, in their order, and flushes the file to disk.

    Args:
        at_most: upper limit of the number of samples.
        field: how their targets are kept.
    Returns: the number of samples written.
    Raises: OSError, e.g. when the disk is full.
    """
    path.unlink(missing_ok=True)
    with closing(BetonWriter(path, at_most, field)) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.finish()


def next_page(position: int) -> int:
    return -(-position // PAGE) * PAGE


def field_descriptions(field: Field) -> Table:
    rows = np.zeros(2, FIELD)
    rows["arguments"][0][: len(CHECKSUMS)] = np.frombuffer(CHECKSUMS, np.uint8)
    for row, (name, number) in zip(rows, {"image": IMAGES, NAMES[field]: field}.items(), strict=True):
        row["type_id"] = number
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return rows


class BetonFile:
    """A .beton file open for reading: sizes and labels in memory, images and masks mapped from disk.

    Args:
        verify: when the bytes of a sample are compared with its checksum, where the file has them: once, always, never.

    Attributes:
        path: the file.
        heights, widths: (samples,) int64.
        field: how the targets are kept.
        targets: (samples,) int64 class numbers, or where the bytes lie; see `stored`.
        digest: hex SHA-256 of the samples' sizes, targets and positions in the file.
    Raises: UserError for a file that is missing, truncated, damaged, of another version or with other fields.
    """

    def __init__(self, path: Path, verify: str = "once") -> None:
        self.path, self._verify = path, verify
        try:
            if not path.is_file():
                raise UserError(f"{path}: no such file: expected the output of scripts/prepare_data.py")
            with path.open("rb") as file:
                tables = read_tables(file, path)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}: expected a readable .beton file") from error
        self.heights, self.widths, self.digest = tables.heights, tables.widths, tables.digest
        self.field, self.targets = tables.field, tables.targets
        self._modes, self._offsets, self._sizes = tables.modes, tables.offsets, tables.sizes
        self._checksums = tables.checksums
        self._verified = np.zeros(len(self), bool)
        self._length = len(self._map)
        self._address = np.frombuffer(self._map, np.uint8).ctypes.data

    def __len__(self) -> int:
        return len(self.heights)

    def check_length(self) -> None:
        """Raises RunError if the file was truncated since it was opened: reading the rest would kill the process."""
        length = self._map.size()
        if length < self._length:
            raise RunError(f"{self.path}: truncated while in use: expected {self._length} bytes, found {length}")

    def stored(self, sample: int) -> Stored:
        """The target of a sample as it is kept."""
        kept = self.targets[sample]
        return int(kept) if self.field is Field.INT else self._map[int(kept["ptr"]) : int(kept["ptr"] + kept["size"])]

    def release(self, samples: Ints) -> None:
        """Gives the memory back that holds pages of these samples, which follow each other; they are read anew."""
        start = int(self._offsets[samples[0]]) // mmap.PAGESIZE * mmap.PAGESIZE
        end = int((self._offsets[samples] + self._sizes[samples]).max())
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def decode(
        self, samples: Ints, view: View, out: Tensor, padding: Colour = (0, 0, 0), decoder: Decoder = decode
    ) -> dict[int, str]:
        """Decodes what a view shows of some samples, without the GIL.

        Args:
            samples: (N,)
            out: (N, H, W, 3) uint8 of the view's size, contiguous.
            padding: the colour of what lies beyond an image.
            decoder: ours, or FFCV's kernels (see en.data.ffcv.decode).
        Returns: by row, what is wrong with a sample that is damaged, of a kind that is not decoded, or of another size
            than in the metadata. Its pixels are undefined then.
        """
        modes, sizes = self._modes[samples], (self.heights[samples], self.widths[samples])
        addresses = self._address + self._offsets[samples]
        images = Images(addresses.astype(np.uint64), self._sizes[samples], *sizes, modes == RAW)
        refused = show(images, view, padding, out, decoder)
        said = {row: self._refusal(int(samples[row]), reason) for row, reason in refused.items()}
        said |= {
            row: f"sample {samples[row]} is damaged: its bytes are not as written" for row in self._changed(samples)
        }
        return {row: f"{self.path}: {reason}" for row, reason in said.items()}

    def _changed(self, samples: Ints) -> list[int]:
        """Finds the rows of samples whose bytes do not have their checksums, of those that are to be verified."""
        if self._checksums is None or self._verify == "never":
            return []
        changed = []
        for row, sample in enumerate(samples.tolist()):
            if self._verified[sample] and self._verify == "once":
                continue
            start, size = int(self._offsets[sample]), int(self._sizes[sample])
            checksum = zlib.crc32(memoryview(self._map)[start : start + size])  # without the GIL
            if isinstance(target := self.stored(sample), bytes):
                checksum = zlib.crc32(target, checksum)
            self._verified[sample] = checksum == self._checksums[sample]
            if not self._verified[sample]:
                changed.append(row)
        return changed

    def _refusal(self, sample: int, reason: str) -> str:
        """Says of a sample that is not decoded whether it is damaged, or of a kind that the decoder does not know."""
        start = int(self._offsets[sample])
        kind = unusual_kind(self._map[start : start + int(self._sizes[sample])])
        if self._modes[sample] == JPEG and kind and "truncated" not in reason:
            return f"sample {sample} is of a kind that is not decoded, {kind}: {reason}: expected it stored raw"
        return f"sample {sample} is damaged: {reason}"


def read_classes(root: Path) -> list[str]:
    """Reads the class names beside the .beton files, in the order of the labels.

    Raises: UserError, also for a folder that is not prepared, with how to do it.
    """
    path = root / "classes.json"
    if not path.exists():
        raise UserError(f"{root}: {not_prepared(root)}")
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON list of class names: {error}") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: expected a JSON list of class names")
    return classes


def not_prepared(root: Path) -> str:
    """Returns what is wrong with a folder without classes.json, the last file of a preparation, and what to do."""
    if not root.is_dir():
        return "no such folder: expected OUT of `en-prepare SOURCE OUT`"
    if all((root / split).is_dir() for split in SPLITS):
        return "class folders, not prepared: expected OUT of `en-prepare SOURCE OUT`, or data.loader=folder"
    return "no classes.json, so not prepared: expected OUT of `en-prepare SOURCE OUT`"


def read_target(file: BetonFile) -> Target:
    """Returns what kind a file's targets are of, by the dataset.json beside it, or else by the field that keeps them.

    Raises: UserError for a kind that is unknown or kept in another field.
    """
    path = file.path.with_name("dataset.json")
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("target") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error
    known = {each.name for each in TARGETS.values() if each.field is file.field}
    if name is not None and name not in known:
        raise UserError(f"{path}: target={shown(name)}: expected {' or '.join(known)}, which {file.path.name} may hold")
    return (BY_FIELD[file.field] if name is None else TARGETS[name])()


def read_palette(root: Path, classes: int) -> list[Colour]:
    """Reads the colours of the classes; others that differ well where dataset.json has none. Raises: UserError."""
    path = root / "dataset.json"
    try:
        colours = json.loads(path.read_text(encoding="utf-8")).get("palette") if path.is_file() else None
        return varied(classes) if colours is None else [(int(r), int(g), int(b)) for r, g, b in colours]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error


def read_cropped(root: Path) -> bool:
    """Tells whether the images are stored as evaluation shows them (see Source). Raises: UserError."""
    path = root / "dataset.json"
    try:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("cropped") is True
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error


def read_name(root: Path) -> str:
    """Reads the data set's name and how preparation changed its images; without dataset.json, the folder's name.

    Raises: UserError.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return as_text(root.resolve().name)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, storage = str(described["name"]), described["storage"]
        name.encode()  # half a character, which JSON can hold, ends in a UnicodeError, a ValueError
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a name of {len(name)} characters, more than {LONGEST_NAME}")
        changes = [f"re-encoded at JPEG quality {storage['quality']}"] if storage["kind"] == "reencode" else []
        changes += [f"largest side {storage['max_side']}"] if storage["max_side"] else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error
    return name + (f" ({', '.join(changes)})" if changes else "")
