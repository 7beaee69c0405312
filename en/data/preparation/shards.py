"""A preparation in shards, on several machines, and the data set that is made of them."""

import shutil
from collections.abc import Generator
from functools import partial
from pathlib import Path

from en.data.jpeg import library_or_none
from en.data.preparation.encode import Storage
from en.data.preparation.journal import stored_in
from en.data.preparation.out_folder import OutFolder
from en.data.preparation.prepare import WHOLE, Shard, Work, complete, in_one_line, write_split
from en.data.preparation.remarks import Checked, Remarks
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
        stored = {split: write_split(work, split, folder, shard, work.encoding(split)) for split in source.splits}
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

    One that was stopped goes on, as a preparation does: the file so far is what `prepare` would have written.

    Args, returns and raises: as `prepare`; UserError also for a shard that is missing, unfinished or of another source.
    """
    work = Work(source, storage, workers, Remarks(on_warning, skip_corrupt))
    with in_one_line(source, out), (folder := OutFolder(out)).locked(overwrite):
        made = {split: partial(merged, work, split, out, count) for split in source.splits}
        stored = {split: write_split(work, split, folder, WHOLE, make) for split, make in made.items()}
        counts = complete(work, folder, stored)
    for index in range(count):
        shutil.rmtree(shard_folder(out, Shard(index, count)))
    return counts


def shard_folder(out: Path, shard: Shard) -> Path:
    return out / f"shard-{shard}"


def merged(work: Work, split: str, out: Path, count: int, numbers: range, done: int) -> Generator[Checked, None, None]:
    """Yields what the shards in `out` hold of a split's samples, but for the first `done`.

    Raises: UserError for a shard that is missing, unfinished or of another source.
    """
    plan = work.plan(split, WHOLE)
    with Progress(f"{work.source.name}: {split}: merging", len(numbers), before=done) as progress:
        for shard in (Shard(index, count) for index in range(count)):
            part = OutFolder(shard_folder(out, shard)).partial(f"{split}.beton")
            mine = shard.of(len(numbers))
            found = min(max(0, done - mine.start), len(mine))
            for checked in stored_in(part, plan | {"shard": str(shard)}, found):
                progress.advance()
                found += 1
                yield checked
            if found != len(mine):
                raise UserError(f"{part.parent}: {found} of {len(mine)} images of {split}: unfinished")
