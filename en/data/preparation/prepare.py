"""Turns a source of images into a .beton file and a file of names a split, dataset.json and classes.json."""

import hashlib
import signal
import zlib
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import torch

from en import __version__
from en.data.decoding import UnusableImage, decoders
from en.data.ffcv.file import BetonFile
from en.data.ffcv.names import SUFFIX, write_names
from en.data.jpeg import library_or_none
from en.data.preparation.encode import Storage
from en.data.preparation.journal import GrowingFile
from en.data.preparation.out_folder import OutFolder
from en.data.preparation.pool import encode_all
from en.data.preparation.remarks import Checked, Remarks, Tally
from en.data.sources import Source
from en.data.sources.source import Packed
from en.data.targets import Pixels, Target
from en.data.views import View
from en.errors import RunError, Stopped, UserError, listed, warn
from en.progress import Progress, tell


class Terminated(Stopped):
    """SIGTERM ended the preparation before any file was put in place."""

    exit_code = 128 + signal.SIGTERM

    @classmethod
    def stop(cls, number: int, frame: FrameType | None) -> NoReturn:
        """Handles the signal."""
        raise cls("terminated")


@dataclass(frozen=True)
class Shard:
    """A part of a preparation, made apart from the others: the samples from index/count to (index + 1)/count."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def of(self, samples: int) -> range:
        """The numbers of its samples."""
        return range(samples * self.index // self.count, samples * (self.index + 1) // self.count)


WHOLE = Shard(0, 1)
Maker = Callable[[range, int], Generator[Checked, None, None]]  # of samples of these numbers, but for the first so many


def prepare(
    source: Source,
    out: Path,
    storage: Storage,
    workers: int,
    skip_corrupt: bool,
    on_warning: str = "refuse",
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes out/SPLIT.beton and out/SPLIT.names of each split, out/dataset.json and out/classes.json: all or none.

    Decodes every image once to check it, and reads every stored sample again after writing. Grey and CMYK images become
    RGB. Samples keep the source's order, so that the same source gives the same bytes.

    Args:
        skip_corrupt: whether to skip files that are damaged or of a kind that is not decoded.
        on_warning: how to treat files that libjpeg decodes with a warning, other than about padding before their end,
            which changes no pixel: refuse counts them as damaged, skip omits them, keep stores their pixels.
        overwrite: whether to replace a data set in `out`.
    Returns: how many samples were stored, by split; under "skipped" how many were skipped, under "warnings" how many
        files had a warning, under "warnings_kept" how many of these were stored, under "in_both" how many of val are,
        byte for byte, in train too, of which it warns; under "as_they_are" how many are JPEG files byte for byte.
    Raises: UserError that lists every file that is damaged or not decoded, unless skip_corrupt is set, and for an `out`
        that is in use or holds a data set; RunError if a worker died.
    """
    work = Work(source, storage, workers, Remarks(on_warning, skip_corrupt))
    library_or_none()  # compiled before the workers ask for it
    with in_one_line(source, out), (folder := OutFolder(out)).locked(overwrite):
        stored = {split: write_split(work, split, folder, WHOLE, work.encoding(split)) for split in source.splits}
        return complete(work, folder, stored)


@dataclass(frozen=True)
class Work:
    """Says what is prepared and how."""

    source: Source
    storage: Storage
    workers: int
    remarks: Remarks

    def encoding(self, split: str) -> Maker:
        """Makes samples of a split from their images."""
        return partial(encode_all, self.source, split, self.storage, self.workers)

    def plan(self, split: str, shard: Shard) -> dict[str, object]:
        """All that decides a split's bytes: a preparation goes on with those of the same plan."""
        digest = hashlib.sha256(repr((self.source.classes, self.source.target)).encode())
        for sample in self.source.splits[split]:
            image, target = identity(sample.image), identity(sample.target)
            digest.update(f"{sample.name}\0{sample.place}\0{image}\0{target}\0".encode(errors="surrogateescape"))
        how: dict[str, object] = {"storage": asdict(self.storage), "on_warning": self.remarks.on_warning}
        how |= {"skip_corrupt": self.remarks.skip_corrupt, "version": __version__, "decoders": decoders()}
        return {"split": split, "samples": digest.hexdigest(), "shard": str(shard)} | how


def identity(part: Path | Packed | Pixels | int) -> int:
    """A number by which a sample's image or target is known again, wherever the set lies; files go by their names."""
    if isinstance(part, Path):
        return 0
    if isinstance(part, np.ndarray):
        return zlib.crc32(part.tobytes())
    return part if isinstance(part, int) else part.size


@contextmanager
def in_one_line(source: Source, out: Path) -> Iterator[None]:
    """Turns a worker's death, and what the system refuses, into errors of one line."""
    try:
        yield
    except BrokenProcessPool as error:
        raise RunError(
            f"{source.name}: a worker process died, perhaps out of memory; nothing was put in place, and the same "
            "command goes on"
        ) from error
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error


def complete(work: Work, folder: OutFolder, stored: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Checks the files, names and describes what is in them, puts all in place and says what was found.

    Args:
        stored: the numbers of the samples that the files hold, by split.
    Returns: the counts of `prepare`.
    Raises: as `prepare`.
    """
    source, remarks = work.source, work.remarks
    remarks.refuse()
    for split, numbers in stored.items():
        if not numbers:
            raise UserError(f"{source.name}: expected images for {split}, found none that is intact")
        digest = verify(folder.partial(f"{split}.beton"), source.target, work.workers)
        samples = source.splits[split]
        write_names(folder.partial(f"{split}{SUFFIX}"), digest, (samples[number].name for number in numbers))
    counts = {split: len(numbers) for split, numbers in stored.items()}
    counts |= {"skipped": len(remarks.skipped), "warnings": remarks.warned, "warnings_kept": len(remarks.kept)}
    counts |= {"in_both": len(remarks.in_both), "as_they_are": remarks.as_they_are}
    described = {"name": source.name, "storage": asdict(work.storage), "target": source.target.name, **counts}
    described |= {"palette": source.palette} if source.palette else {}
    described |= {"cropped": True} if source.cropped else {}
    if remarks.tallies:
        described["maps"] = {split: tally.described() for split, tally in remarks.tallies.items()}
    if remarks.oddities:
        described["oddities"] = dict(sorted(remarks.oddities.items()))
    folder.write_json("dataset.json", described)
    folder.write_json("classes.json", source.classes)
    folder.put_in_place(stored)
    say(source, remarks, counts)
    return counts


def say(source: Source, remarks: Remarks, counts: dict[str, int]) -> None:
    for what, lines in (("skipped", remarks.skipped), ("kept", remarks.kept)):
        for line in lines:
            print(f"{what} {line}")
    for what, count in sorted(remarks.oddities.items()):
        print(f"{what}: {count} images")
    for line in table_of(remarks.tallies, source.classes):
        print(line)
    if remarks.in_both:
        others = sum(counts[split] for split in source.splits if split != "train")
        warn(
            f"{source.name}: {len(remarks.in_both)} of {others} images for evaluation are among those for "
            f"training, so that scores flatter: {listed(remarks.in_both, 3)}"
        )


def table_of(tallies: dict[str, Tally], classes: list[str]) -> Iterator[str]:
    """Lists for people what the maps of the splits hold: of the pixels that count each class, of all those that do not.

    Warns of classes that training has no pixel of.
    """
    if not tallies:
        return
    width = max(map(len, [*classes, "does not count"]))
    yield "  ".join(["class".ljust(width), *(f"{split:>5} %" for split in tallies)])
    shares = [100 * tally.counts[:-1] / max(1, tally.counts[:-1].sum()) for tally in tallies.values()]
    for number, name in enumerate(classes):
        yield "  ".join([name.ljust(width), *(f"{share[number]:7.3f}" for share in shares)])
    yield "  ".join(["does not count".ljust(width), *(f"{100 * tally.ignored:7.3f}" for tally in tallies.values())])
    for split, tally in tallies.items():
        if tally.all_ignored:
            yield f"{split}: {tally.all_ignored} maps of which no pixel counts"
    trained = tallies["train"].counts[:-1] if "train" in tallies else np.ones(len(classes))
    lacking = [name for name, count in zip(classes, trained, strict=True) if not count]
    if lacking:
        warn(f"{len(lacking)} of {len(classes)} classes on no pixel for training: {listed(lacking)}")


def write_split(work: Work, split: str, folder: OutFolder, shard: Shard, make: Maker) -> Sequence[int]:
    """Writes a split's .beton file under its partial name, or goes on with it. Returns: which samples it holds."""
    numbers = shard.of(len(work.source.splits[split]))
    path, field = folder.partial(f"{split}.beton"), work.source.target.field
    stored = array("q")
    with closing(GrowingFile(path, work.plan(split, shard), len(numbers), field)) as file:
        done = 0
        for checked in file.earlier():
            if work.remarks.accept(checked, split):
                stored.append(numbers[done])
            done += 1
        if done:
            tell(f"{work.source.name}: {split}: goes on after {done} of {len(numbers)} images")
        with closing(make(numbers, done)) as found:
            for number, checked in zip(numbers[done:], found, strict=True):
                is_stored = work.remarks.accept(checked, split)
                file.add(checked, is_stored)
                if is_stored:
                    stored.append(number)
        file.finish()
    return stored


def verify(path: Path, target: Target, workers: int) -> str:
    """Reads every sample of a .beton file as training does: its checksum, and the last pixels, down to the right.

    All codes of its bytes were judged before they were written.

    Returns: the file's digest.
    Raises: RunError that names the first sample that fails.
    """
    file = BetonFile(path)

    def decode(part: range) -> int:
        samples = np.array(part)
        sizes = np.stack([file.heights[samples], file.widths[samples]], axis=1)
        shown = np.minimum(sizes, 8)
        corner = View(np.concatenate([sizes - shown, shown], axis=1), np.zeros(len(part), bool), (8, 8))
        refused = file.decode(samples, corner, torch.empty((len(part), *corner.size, 3), dtype=torch.uint8))
        if refused:
            raise RunError(refused[min(refused)])
        for row, sample in enumerate(part):
            try:
                target.cut(file.stored(sample), corner, row)
            except UnusableImage as error:
                raise RunError(f"{path}: sample {sample} is damaged: {error}") from error
        file.release(samples)
        return len(part)

    parts = [range(start, min(start + 256, len(file))) for start in range(0, len(file), 256)]
    with ThreadPoolExecutor(workers) as pool, Progress(f"checking {path.stem}", len(file)) as progress:
        for count in pool.map(decode, parts):
            progress.advance(count)
    return file.digest
