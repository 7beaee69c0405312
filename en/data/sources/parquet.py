"""Hugging Face's parquet shards, as ILSVRC/imagenet-1k has them: columns image {bytes, path} and label."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from en.data.decoding import DamagedImage
from en.data.sources.compact import Compact
from en.data.sources.labels import Labels, by_wnid
from en.data.sources.shards import all_shards, shards
from en.data.sources.source import SPLITS, Sample, Source, as_text
from en.data.sources.val_labels import Hints
from en.errors import UserError, listed, naming_missing_packages, shown

SUFFIX = ".parquet"
BATCH, INDEX_BATCH = 16, 4096  # rows; small batches also read groups of more than 2 GiB, which large ones do not
BUFFER = 1 << 20  # bytes; pre_buffer would hold a whole file, and threads several columns' chunks


class Cell(NamedTuple):
    """An image file in a row of a parquet file: its bytes, of about so many."""

    file: Path
    row: int
    size: int

    @property
    def in_order(self) -> bool:
        return True

    def read(self) -> bytes:
        return cursor(self.file).read(self.row)


class Cursor:
    """Reads the images of a parquet file row by row, in small batches."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_parquet(path)
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts))]
        self._batches: Iterator[Any] = iter(())
        self._images: Any = ()
        self._at = self._next = 0  # rows: the first of the batch, and of the next

    def read(self, row: int) -> bytes:
        try:
            self._go_to(row)
            content = self._images[row - self._at].as_py()
        except (OSError, ValueError, StopIteration) as error:
            raise DamagedImage(f"{self._path.name}: row {row} cannot be read: {error}") from error
        if not isinstance(content, bytes):
            raise DamagedImage(f"{self._path.name}: row {row} has no bytes")
        return content

    def _go_to(self, row: int) -> None:
        group = max(number for number, start in enumerate(self._starts) if start <= row)
        if row < self._at or self._starts[group] > self._next or not self._next:
            self._batches = self._file.iter_batches(
                BATCH, row_groups=range(group, len(self._starts)), columns=["image.bytes"], use_threads=False
            )
            self._at = self._next = self._starts[group]
        while row >= self._next:
            batch = next(self._batches).column(0)
            self._images = batch.flatten()[0]
            self._at, self._next = self._next, self._next + len(batch)


@lru_cache(1)
def cursor(path: Path) -> Cursor:
    return Cursor(path)


def is_parquet(path: Path) -> bool:
    return any(shards(path, SUFFIX).values())


def read_parquet(path: Path, hints: Hints) -> Source:
    """Reads parquet shards in the order of their rows, which is what reads them fast.

    Raises: UserError for shards that are missing or have other columns.
    """
    labels, files = Labels(path), all_shards(path, SUFFIX)
    splits = {split: Compact(rows(files[split], labels)) for split in SPLITS}
    classes, splits = by_wnid(splits, labels.classes(class_names(files["train"][0]), hints))
    form = f"Hugging Face's parquet shards, {len(files['train'])} + {len(files['val'])}"
    return Source(as_text(path.resolve().name), classes, splits, form=form)


def open_parquet(path: Path) -> Any:
    with naming_missing_packages("imagenet"):
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    try:
        file = ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: expected a whole parquet file: {error}") from error
    columns = [file.schema.column(number).path for number in range(len(file.schema))]
    if not {"image.bytes", "label"} <= set(columns):
        raise UserError(f"{path}: columns {listed(columns)}: expected image.bytes, image.path and label")
    return file


def rows(files: list[Path], labels: Labels) -> Iterator[Sample]:
    """Reads labels and names alone, which are a thousandth of the files."""
    for path in files:
        file = open_parquet(path)
        size = image_bytes(file.metadata)
        names = ["image.path"] if "image.path" in [file.schema.column(n).path for n in range(len(file.schema))] else []
        row = 0
        for batch in file.iter_batches(INDEX_BATCH, columns=[*names, "label"], use_threads=False):
            numbers = batch.column("label").to_pylist()
            paths = batch.column("image").flatten()[0].to_pylist() if names else [None] * len(numbers)
            for label, name in zip(numbers, paths, strict=True):
                if not isinstance(label, int) or label < 0:
                    raise UserError(f"{path}: row {row}: label {shown(label)}: expected a class number from 0 on")
                yield Sample(labels.name(label, name or "", f"{path.stem}[{row}]"), Cell(path, row, size), label)
                row += 1


def image_bytes(metadata: Any) -> int:
    """The mean bytes of an image, by the file's footer."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    total = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "image.bytes")
    return int(total) // max(1, int(metadata.num_rows))


def class_names(path: Path) -> list[str]:
    """Reads the classes' names from what `datasets` keeps in a file's metadata; empty where it keeps none."""
    content = (open_parquet(path).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(content)["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names]
