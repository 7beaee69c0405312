"""FFCV's file, written in the samples' order and read with every decode checked.

The layout is that of FFCV 1.0.2, file version 2: header, field descriptions, one row of metadata a sample, data pages,
allocation table; all little-endian. Stock FFCV reads these files, and this module reads stock files that have an RGB image
and an integer label.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.data.kernels import Bytes, decode_jpeg, scale
from en.errors import RunError, UserError

VERSION = 2
JPEG, RAW = 0, 1  # image modes
FIELDS = {"image": 2, "label": 1}  # names and FFCV's numbers for RGBImageField and IntField
PAGE = 1 << 23  # bytes, FFCV's default: no sample smaller than a page crosses a page's end
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("alloc_table_ptr", "<u8")]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


class Encoded(NamedTuple):
    """One sample as it is stored: JPEG or raw, the image's size in pixels, its bytes, and the label."""

    mode: int
    width: int
    height: int
    content: bytes
    label: int


def write_beton(path: Path, samples: Iterable[Encoded], at_most: int) -> int:
    """Writes the samples to `path`, in their order, and makes the file durable.

    Args:
        at_most: the largest number of samples that can come; fewer are fine.
    Returns: the number of samples written.
    Raises: OSError when the disk is full.
    """
    metadata, table = np.zeros(at_most, SAMPLE), np.zeros(at_most, ALLOCATION)
    at = next_page(HEADER.itemsize + len(FIELDS) * FIELD.itemsize + metadata.nbytes)
    count = 0
    with path.open("wb") as file:
        for sample in samples:
            size = len(sample.content)
            at = next_page(at) if at % PAGE + size > PAGE else at
            file.seek(at)
            file.write(sample.content)
            metadata[count] = ((sample.mode, sample.width, sample.height, at), sample.label)
            table[count] = (count, at, size)
            at += size
            count += 1
        file.seek(at)
        file.write(table[:count].tobytes())
        header = np.array([(VERSION, len(FIELDS), PAGE, count, at)], HEADER)
        file.seek(0)
        file.write(header.tobytes() + field_descriptions().tobytes() + metadata[:count].tobytes())
        file.flush()
        os.fsync(file.fileno())
    return count


def next_page(position: int) -> int:
    return -(-position // PAGE) * PAGE


def field_descriptions() -> NDArray[np.void]:
    rows = np.zeros(len(FIELDS), FIELD)
    for row, (name, number) in zip(rows, FIELDS.items(), strict=True):
        row["type_id"] = number
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return rows


class BetonFile:
    """A .beton file opened for reading: sizes and labels in memory, the images mapped from the disk.

    Attributes:
        path: the file.
        heights, widths, labels: (samples,) int64.
        digest: SHA-256, in hexadecimal digits, of which samples the file has: their sizes, labels and places.
    Raises: UserError for a file that is missing, of another version, truncated, or with other fields.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata, table, self.digest = read_tables(path)
        image = metadata["f0"]
        table = np.sort(table, order="ptr")
        place = np.searchsorted(table["ptr"], image["data_ptr"]).clip(max=len(table) - 1)
        self._offsets, self._sizes = image["data_ptr"].astype(np.int64), table["size"][place].astype(np.int64)
        self._modes = image["mode"]
        self.heights, self.widths = image["height"].astype(np.int64), image["width"].astype(np.int64)
        self.labels: NDArray[np.int64] = metadata["f1"].astype(np.int64)
        raw_sizes = np.where(self._modes == RAW, 3 * self.heights * self.widths, self._sizes)
        unknown = (table["ptr"][place] != image["data_ptr"]).any() or (raw_sizes != self._sizes).any()
        if unknown or (self._offsets + self._sizes).max() > path.stat().st_size:
            raise UserError(f"{path}: truncated or damaged: expected a whole .beton file; prepare it again")
        self._map: Bytes = np.memmap(path, np.uint8, "r")
        self._address = self._map.ctypes.data

    def __len__(self) -> int:
        return len(self.labels)

    def largest(self) -> int:
        """Bytes of the largest decoded image, the size of the scratch buffer that `decode` needs."""
        return int((3 * self.heights * self.widths).max())

    def decode(self, sample: int, box: tuple[int, int, int, int], out: Bytes, scratch: Bytes) -> None:
        """Decodes one sample and scales a part of it into `out`. Releases the GIL while it works.

        Args:
            box: top, left, height, width of the part, pixels.
            out: (R, R, 3), contiguous; scaled by area averaging, as FFCV does.
            scratch: at least `largest()` bytes, one buffer for each thread.
        Raises: RunError that names the sample when libjpeg finds it damaged.
        """
        height, width = int(self.heights[sample]), int(self.widths[sample])
        pixels = self._address + int(self._offsets[sample])
        if self._modes[sample] == JPEG:
            if decode_jpeg(pixels, int(self._sizes[sample]), height, width, scratch):
                raise RunError(f"{self.path}: sample {sample} is damaged: libjpeg could not decode it")
            pixels = scratch.ctypes.data
        scale(pixels, height, width, box, out)


def read_tables(path: Path) -> tuple[NDArray[np.void], NDArray[np.void], str]:
    """A file's metadata, allocation table and digest. Raises UserError for one that is missing, of another kind or cut short."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: expected the output of scripts/prepare_data.py")
    header = np.fromfile(path, HEADER, 1)
    if len(header) == 0 or header[0]["version"] != VERSION:
        found = f", found version {header[0]['version']}" if len(header) else ", found too few bytes"
        raise UserError(f"{path}: expected a .beton file of version {VERSION}{found}")
    count, table_at = int(header[0]["num_samples"]), int(header[0]["alloc_table_ptr"])
    if header[0]["num_fields"] != len(FIELDS):
        raise UserError(f"{path}: expected 2 fields, an RGB image and an integer label, found {header[0]['num_fields']}")
    fields = np.fromfile(path, FIELD, len(FIELDS), offset=HEADER.itemsize)
    if fields["type_id"].tolist() != list(FIELDS.values()):
        raise UserError(f"{path}: expected an RGB image and an integer label, found fields of types {fields['type_id'].tolist()}")
    size = path.stat().st_size
    start = HEADER.itemsize + fields.nbytes
    if count < 1 or size < max(start + count * SAMPLE.itemsize, table_at + count * ALLOCATION.itemsize):
        raise UserError(f"{path}: truncated or damaged: expected {count} samples in more than {size} bytes; prepare it again")
    metadata = np.fromfile(path, SAMPLE, count, offset=start)
    table = np.fromfile(path, ALLOCATION, count, offset=table_at)
    return metadata, table, tables_digest(header, fields, metadata, table)


def tables_digest(*tables: NDArray[np.void]) -> str:
    """SHA-256 over a file's header, field descriptions, metadata and allocation table, in hexadecimal digits."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(table.view(np.uint8))
    return digest.hexdigest()


def read_classes(root: Path) -> list[str]:
    """Class names beside the .beton files, in the order of the labels."""
    path = root / "classes.json"
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON list of class names: {error}") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: expected a JSON list of class names")
    return classes


def read_name(root: Path) -> str:
    """The data set's name, and what preparation changed in its images; the folder's name where dataset.json is missing."""
    path = root / "dataset.json"
    if not path.is_file():
        return root.resolve().name
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, storage = str(described["name"]), described["storage"]
        changes = [f"re-encoded at JPEG quality {storage['quality']}"] if storage["kind"] == "reencode" else []
        changes += [f"largest side {storage['max_side']}"] if storage["max_side"] else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected what scripts/prepare_data.py wrote: {error}") from error
    return name + (f" ({', '.join(changes)})" if changes else "")
