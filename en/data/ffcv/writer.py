"""FFCV's file, written in the samples' order. Stock FFCV reads these files."""

import os
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from en.data.ffcv.tables import (
    ALLOCATION,
    CHECKSUM,
    CHECKSUMS,
    FIELD,
    HEADER,
    IMAGES,
    METADATA,
    NAMES,
    SAMPLES,
    VERSION,
    Table,
    sealed,
    tables_digest,
)
from en.data.targets import Field, Stored

PAGE = 1 << 23  # bytes, FFCV's default: no sample smaller than a page crosses a page boundary


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
