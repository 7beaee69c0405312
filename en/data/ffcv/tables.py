"""The tables of FFCV's file: their layout, and checks that they lead no reader out of the file or to another's pixels.

The layout is that of FFCV 1.0.2, file version 2: header, field descriptions, one row of metadata per sample, data
pages, allocation table; all little-endian. The allocation table ends the file and has one row per sample, and one more
per target that is kept as bytes, in any order.

Before the allocation table stand checksums of our own, one CRC-32 a sample of the bytes of its image and of its target;
the image field's arguments, which stock FFCV ignores as well, say so. Files by stock FFCV have none.

The seal is the SHA-256 of all of these, kept among the target field's arguments, which stock FFCV leaves at zero and
ignores: it exposes any change of a target or size. Files by stock FFCV have none.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.data.targets import Field
from en.errors import UserError

VERSION = 2
JPEG, RAW = 0, 1  # image modes
IMAGES = 2  # FFCV's number for RGBImageField
NAMES = {Field.INT: "label", Field.BYTES: "mask"}  # of the targets' fields
LARGEST_SIDE = 65_535  # sizes have 16 bits
LARGEST_AREA = 178_956_970  # pixels; Pillow, with which preparation reads images, refuses larger ones
SEAL = b"sha256:"
CHECKSUMS, CHECKSUM = b"crc32", np.dtype("<u4")
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
KEPT = {Field.INT: np.dtype("<i8"), Field.BYTES: np.dtype([("ptr", "<u8"), ("size", "<u8")])}
SAMPLES = {field: np.dtype([("f0", IMAGE), ("f1", kept)], align=True) for field, kept in KEPT.items()}
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
METADATA = HEADER.itemsize + 2 * FIELD.itemsize
"""Offset of the metadata, bytes."""

Table = NDArray[np.void]


class Tables(NamedTuple):
    """A file's columns, (samples,) each: mode, size in pixels, and offset and size of the bytes; target.

    The targets are class numbers, int64, or where their bytes lie; the digest is the hex SHA-256 of all tables; not
    every file has checksums.
    """

    modes: NDArray[np.uint8]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    field: Field
    targets: NDArray[Any]
    digest: str
    checksums: NDArray[np.uint32] | None


def read_tables(file: BinaryIO, path: Path) -> Tables:
    """Reads and checks a file's tables. Raises UserError for a file of another kind, truncated or damaged."""
    header, fields = read_header(file, path)
    field = Field(int(fields["type_id"][-1]))
    kind, allocations = SAMPLES[field], 2 if field is Field.BYTES else 1
    count, table_at = int(header["num_samples"][0]), int(header["alloc_table_ptr"][0])
    length, pages = os.fstat(file.fileno()).st_size, METADATA + count * kind.itemsize
    if count < 1 or table_at < pages or table_at + count * allocations * ALLOCATION.itemsize != length:
        raise UserError(
            f"{path}: truncated or damaged: a table of {count} samples at byte {table_at}: expected it to follow the "
            f"samples and to end the file, at {length} bytes; prepare it again"
        )
    metadata = read_rows(file, kind, count, METADATA)
    table = read_rows(file, ALLOCATION, count * allocations, table_at)
    check_images(path, metadata["f0"])
    places = by_sample(table, metadata["f0"]["data_ptr"], allocations)
    has_checksums = fields["arguments"][0].tobytes().rstrip(b"\0") == CHECKSUMS
    end = table_at - has_checksums * count * CHECKSUM.itemsize
    check_offsets(path, metadata, places, pages, end)
    checksums = read_rows(file, CHECKSUM, count, end) if has_checksums else None
    digest = tables_digest(header, fields, metadata, table)
    if fields["arguments"][-1].any() and fields[-1:].tobytes() != sealed(fields, digest)[-1:].tobytes():
        raise UserError(f"{path}: damaged: its sizes, labels or offsets are not as written; prepare it again")
    image, sizes = metadata["f0"], places[:, 0]["size"].astype(np.int64)
    heights, widths, offsets = (image[name].astype(np.int64) for name in ("height", "width", "data_ptr"))
    targets = metadata["f1"].astype(np.int64) if field is Field.INT else metadata["f1"].copy()
    return Tables(image["mode"].copy(), heights, widths, offsets, sizes, field, targets, digest, checksums)


def read_header(file: BinaryIO, path: Path) -> tuple[Table, Table]:
    header = read_rows(file, HEADER, 1, 0)
    if len(header) == 0 or header["version"][0] != VERSION:
        found = f"version {header['version'][0]}" if len(header) else "too few bytes"
        raise UserError(f"{path}: expected a .beton file of version {VERSION}, found {found}")
    expected = "an RGB image and an integer label or a mask in bytes"
    if header["num_fields"][0] != 2:
        raise UserError(f"{path}: expected 2 fields, {expected}, found {header['num_fields'][0]}")
    fields = read_rows(file, FIELD, 2, HEADER.itemsize)
    found = fields["type_id"].tolist()
    if found not in [[IMAGES, field] for field in Field]:
        raise UserError(f"{path}: expected {expected}, found fields of types {found}")
    return header, fields


def read_rows(file: BinaryIO, kind: np.dtype[Any], count: int, start: int) -> NDArray[Any]:
    """Reads up to `count` rows from byte `start` on; fewer if the file ends."""
    file.seek(start)
    content = file.read(count * kind.itemsize)
    return np.frombuffer(content, kind, len(content) // kind.itemsize)


def check_images(path: Path, image: Table) -> None:
    """Raises UserError for a mode that FFCV does not have and for an impossible size."""
    modes, heights, widths = (image[name].astype(np.int64) for name in ("mode", "height", "width"))
    expect(path, "mode", modes, (modes == JPEG) | (modes == RAW), f"{JPEG} (JPEG) or {RAW} (raw)")
    for name, sides in (("height", heights), ("width", widths)):
        expect(path, name, sides, sides >= 1, f"1 to {LARGEST_SIDE} pixels")
    area = heights * widths
    expect(path, "height x width", area, area <= LARGEST_AREA, f"at most {LARGEST_AREA} pixels")


def by_sample(table: Table, images: NDArray[np.uint64], allocations: int) -> Table:
    """The allocation table in the order of the samples, (samples, allocations), those of the images first.

    Args:
        images: (samples,) their offsets.
    """
    found = table[np.argsort(table["sample_id"], kind="stable")].reshape(-1, allocations)
    if allocations > 1:
        later = found[:, 1]["ptr"] == images
        found[later] = found[later][:, ::-1]
    return found


def check_offsets(path: Path, metadata: Table, places: Table, start: int, end: int) -> None:
    """Raises UserError unless every sample has its own bytes between `start` and `end`, as many as a raw image needs.

    Args:
        metadata, places: (samples,) and (samples, allocations) in the order of the samples.
    """
    image, kept = metadata["f0"], metadata["f1"]
    numbers = np.arange(len(places), dtype=np.uint64)
    for place in places.T:
        expect(path, "number in the allocation table", place["sample_id"], place["sample_id"] == numbers, "one of each")
    check_places(path, "data_ptr", image["data_ptr"], places[:, 0], start, end)
    raw = 3 * image["height"].astype(np.uint64) * image["width"]
    sizes = places[:, 0]["size"]
    expect(path, "size", sizes, (image["mode"] != RAW) | (sizes == raw), "3 x height x width of raw pixels")
    if kept.dtype.names:
        check_places(path, "ptr of the mask", kept["ptr"], places[:, 1], start, end)
        sizes = places[:, 1]["size"]
        expect(path, "size of the mask", kept["size"], kept["size"] == sizes, "that of the allocation table")
    offsets, ends = places["ptr"].ravel(), (places["ptr"] + places["size"]).ravel()
    order = np.argsort(offsets, kind="stable")
    apart = np.ones(len(offsets), bool)
    apart[order[1:]] = ends[order[:-1]] <= offsets[order[1:]]
    own = np.asarray(apart.reshape(places.shape).all(1))
    expect(path, "data_ptr", places[:, 0]["ptr"], own, "an offset after the previous sample")


def check_places(path: Path, what: str, told: NDArray[Any], table: Table, start: int, end: int) -> None:
    """Raises UserError unless bytes lie where the samples tell, between `start` and `end`."""
    offsets, sizes = table["ptr"], table["size"]
    expect(path, what, told, told == offsets, "that of the allocation table")
    expect(path, what, offsets, (start <= offsets) & (offsets < end), f"{start} to {end - 1}")
    expect(path, "size", sizes, (sizes >= 1) & (sizes <= end - offsets), "1 byte or more, before the allocation table")


def expect(path: Path, what: str, values: NDArray[Any], good: NDArray[np.bool_], expected: str) -> None:
    """Raises UserError that names the first sample whose value is not good."""
    if not good.all():
        sample = int(np.argmin(good))
        raise UserError(
            f"{path}: damaged: sample {sample}: {what} {values[sample]}: expected {expected}; prepare it again"
        )


def tables_digest(header: Table, fields: Table, metadata: Table, table: Table) -> str:
    """Hex SHA-256 over header, field descriptions without the seal, metadata and allocation table."""
    digest = hashlib.sha256()
    for part in (header, sealed(fields, ""), metadata, table):
        digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def sealed(fields: Table, digest: str) -> Table:
    """The field descriptions with a digest in the target's arguments; none if the digest is empty."""
    seal = SEAL + digest.encode() if digest else b""
    fields = fields.copy()
    fields["arguments"][-1] = np.frombuffer(seal.ljust(FIELD["arguments"].itemsize, b"\0"), np.uint8)
    return fields
