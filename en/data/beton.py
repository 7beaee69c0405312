"""FFCV's file, written in the samples' order and read with every decode checked.

The layout is that of FFCV 1.0.2 (header, field descriptions, one row of metadata a sample, data pages, allocation table),
so stock FFCV reads these files and this module reads stock files with an RGB image and an integer label.
"""

import json
import os
from collections.abc import Iterable
from ctypes import c_char_p
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ffcv import libffcv
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.reader import Reader
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from numpy.typing import NDArray

from en.errors import RunError, UserError

JPEG, RAW = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"])
PAGE = 1 << 23  # FFCV's default page: no sample smaller than a page crosses a page's end
FIELDS = {"image": RGBImageField, "label": IntField}
Bytes = NDArray[np.uint8]


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
    metadata = np.zeros(at_most, get_metadata_type([kind() for kind in FIELDS.values()]))
    table = np.zeros(at_most, ALLOC_TABLE_TYPE)
    at = next_page(HeaderType.itemsize + len(FIELDS) * FieldDescType.itemsize + metadata.nbytes)
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
        header = np.zeros(1, HeaderType)
        header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, len(FIELDS), PAGE
        header["num_samples"], header["alloc_table_ptr"] = count, at
        file.seek(0)
        file.write(header.tobytes() + field_descriptions().tobytes() + metadata[:count].tobytes())
        file.flush()
        os.fsync(file.fileno())
    return count


def next_page(position: int) -> int:
    return -(-position // PAGE) * PAGE


def field_descriptions() -> NDArray[np.void]:
    type_ids = {kind: number for number, kind in TYPE_ID_HANDLER.items()}
    rows = np.zeros(len(FIELDS), FieldDescType)
    for row, (name, kind) in zip(rows, FIELDS.items(), strict=True):
        row["type_id"] = type_ids[kind]
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        row["arguments"][:] = kind().to_binary()[0]
    return rows


class BetonFile:
    """A .beton file opened for reading: sizes and labels in memory, the images mapped from the disk.

    Attributes:
        path: the file.
        heights, widths, labels: (samples,) int64.
    Raises: UserError for a file that is missing, of another version, truncated, or with other fields.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = read_header(path)
        image, labels = reader.metadata["f0"], reader.metadata["f1"]
        table = np.sort(reader.alloc_table, order="ptr")
        place = np.searchsorted(table["ptr"], image["data_ptr"]).clip(max=max(len(table) - 1, 0))
        if not len(image) or not len(table) or (table["ptr"][place] != image["data_ptr"]).any():
            raise UserError(f"{path}: expected a whole .beton file with at least one sample; prepare it again")
        self._offsets, self._sizes = image["data_ptr"].astype(np.int64), table["size"][place].astype(np.int64)
        self._modes = image["mode"]
        self.heights, self.widths = image["height"].astype(np.int64), image["width"].astype(np.int64)
        self.labels: NDArray[np.int64] = labels.astype(np.int64)
        raw_size = np.where(self._modes == RAW, 3 * self.heights * self.widths, self._sizes)
        if (self._offsets + self._sizes).max() > path.stat().st_size or (raw_size != self._sizes).any():
            raise UserError(f"{path}: truncated: expected {(self._offsets + self._sizes).max()} bytes; prepare it again")
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
            out: (R, R, 3), contiguous; scaled by area averaging (OpenCV's INTER_AREA), as FFCV does.
            scratch: at least `largest()` bytes, one buffer for each thread.
        Raises: RunError that names the sample when libjpeg finds it damaged.
        """
        height, width = int(self.heights[sample]), int(self.widths[sample])
        pixels = self._address + int(self._offsets[sample])
        if self._modes[sample] == JPEG:
            size = int(self._sizes[sample])
            if decode_jpeg(pixels, size, height, width, scratch):
                raise RunError(f"{self.path}: sample {sample} is damaged: libjpeg could not decode it")
            pixels = scratch.ctypes.data
        top, left, box_height, box_width = box
        libffcv.ctypes_resize(
            0, pixels, height, width, top, top + box_height, left, left + box_width,
            out.ctypes.data, out.shape[0], out.shape[1],
        )  # fmt: skip


def read_header(path: Path) -> Reader:
    """FFCV's reader of the file's header and metadata."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: expected the output of scripts/prepare_data.py")
    try:
        reader = Reader(str(path))
    except (AssertionError, ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: expected a .beton file of version {CURRENT_VERSION}: {str(error) or type(error)}") from error
    kinds = [type(handler) for handler in reader.handlers.values()]
    if kinds != list(FIELDS.values()):
        found = ", ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{path}: expected the fields RGBImageField, IntField, found {found or 'none'}")
    if len(reader.metadata) != reader.num_samples:
        raise UserError(f"{path}: truncated: expected {reader.num_samples} samples, found {len(reader.metadata)}")
    return reader


def decode_jpeg(address: int, size: int, height: int, width: int, out: Bytes) -> int:
    """Decodes JPEG bytes at an address into `out` as RGB; 0 when libjpeg had nothing to say against them."""
    code: int = libffcv.ctypes_imdecode(address, size, height, width, out.ctypes.data, height, width, 0, 0, 1, 1, False, False)
    return code


def jpeg_complaint(content: bytes, height: int, width: int) -> str:
    """What libjpeg says against a JPEG file; empty when it decodes without an error or a warning."""
    data = np.frombuffer(content, np.uint8)
    if not decode_jpeg(data.ctypes.data, data.size, height, width, np.empty(3 * height * width, np.uint8)):
        return ""
    error = libffcv.lib.tjGetErrorStr  # of this thread's last call, in the turbojpeg that libffcv is linked with
    error.restype, error.argtypes = c_char_p, []
    return (error() or b"not decodable").decode("ascii", "replace")


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
    """The data set's name, saying so when its images were scaled down or compressed anew; the folder's without dataset.json."""
    path = root / "dataset.json"
    if not path.is_file():
        return root.resolve().name
    described = json.loads(path.read_text(encoding="utf-8"))
    storage = described["storage"]
    changes = [f"re-encoded at JPEG quality {storage['quality']}"] if storage["kind"] == "reencode" else []
    changes += [f"largest side {storage['max_side']}"] if storage["max_side"] else []
    return str(described["name"]) + (f" ({', '.join(changes)})" if changes else "")
