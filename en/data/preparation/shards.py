"""A preparation in shards, on several machines, and the data set that is made of them."""

import shutil
from array import array
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from en.data.ffcv.file import BetonWriter
from en.data.jpeg import library_or_none
from en.data.preparation.encode import Storage
from en.data.preparation.journal import stored_in
from en.data.preparation.out_folder import OutFolder
from en.data.preparation.prepare import Shard, Work, complete, in_one_line, write_split
from en.data.preparation.remarks import Remarks
from en.data.sources import Source
from en.errors import UserError
from en.progress import Progress


def prepare_shard(
    source: Source,
    out: Path,
    storage: Storage,
    workers: int,
    skip_corrupt: bool,
    on_warning: str,
    shard: Shard,
) -> dict[str, int]:
    """Writes a shard into a folder of its own in out, which `merge` makes a data set of with the others.

    Args and raises: as `prepare`. Returns: how many samples the shard stores, by split.
    """
    work = Work(source, storage, workers, Remarks(on_warning, skip_corrupt))
    library_or_none()
    with in_one_line(source, out), (folder := OutFolder(shard_folder(out, shard))).locked(overwrite=False):
        stored = {split: write_split(work, split, folder, shard) for split in source.splits}
        work.remarks.refuse()
    return {split: len(numbers) for split, numbers in stored.items()}


def merge(
    source: Source,
    out: Path,
    storage: Storage,
    workers: int,
    skip_corrupt: bool,
    on_warning: str,
    count: int,
    overwrite: bool = False,
) -> dict[str, int]:
    """Makes a data set of all its shards, the same to the bit as `prepare` writes, and removes them.

    Args, returns and raises: as `prepare`; UserError also for a shard that is missing, unfinished or of another source.
    """
    work = Work(source, storage, workers, Remarks(on_warning, skip_corrupt))
    shards = [Shard(index, count) for index in range(count)]
    with in_one_line(source, out), (folder := OutFolder(out)).locked(overwrite):
        stored = {split: merge_split(work, split, folder, shards) for split in source.splits}
        counts = complete(work, folder, stored)
    for shard in shards:
        shutil.rmtree(shard_folder(out, shard))
    return counts


def shard_folder(out: Path, shard: Shard) -> Path:
    return out / f"shard-{shard}"


def merge_split(work: Work, split: str, folder: OutFolder, shards: list[Shard]) -> Sequence[int]:
    """Writes a split's .beton file of what the shards hold. Returns: which samples it holds."""
    samples = len(work.source.splits[split])
    path, field = folder.partial(f"{split}.beton"), work.source.target.field
    path.unlink(missing_ok=True)
    stored = array("q")
    with (
        closing(BetonWriter(path, samples, field)) as writer,
        Progress(f"{work.source.name}: {split}: merging", samples) as progress,
    ):
        for shard in shards:
            part = OutFolder(shard_folder(folder.path, shard)).partial(f"{split}.beton")
            numbers, found = shard.of(samples), 0
            for checked in stored_in(part, work.plan(split, shard)):
                if work.remarks.accept(checked, split) and checked.encoded is not None:
                    writer.add(checked.encoded)
                    stored.append(numbers[found])
                found += 1
                progress.advance()
            if found != len(numbers):
                raise UserError(f"{part.parent}: {found} of {len(numbers)} images of {split}: unfinished")
        writer.finish()
    return stored
