"""The FFCV loader: FFCV's file, decoded by threads of our own.

Stock FFCV compiles its pipeline at each start, draws crops from unseeded generators, ignores the decoder's return code
and leaves the trainer waiting when its thread dies. Here each thread decodes a part of a batch in one call without the
GIL, of boxes drawn beforehand from (seed, epoch, sample), so that nothing is compiled at a start, any number of threads
gives the same pixels, and a failure reaches the trainer as an exception.
"""

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from en.data.crops import choose, chooses, seen_in_evaluation
from en.data.decoding import UnusableImage
from en.data.ffcv.dataset import read_classes, read_cropped, read_name, read_palette, read_target
from en.data.ffcv.file import BetonFile
from en.data.ffcv.names import read_names
from en.data.jpeg import decode, decoded_by
from en.data.loader import STAND_INS, Batch, Reading, too_many_damaged
from en.data.order import Ints
from en.data.showing import Decoder, rows_of
from en.data.sources import ALL_SPLITS
from en.data.sources.source import choose_split
from en.data.targets import Field, Numbers
from en.data.views import View
from en.errors import RunError, UserError
from en.machine import package_version
from en.size import Size

BATCHES_AHEAD = 3


class Job(NamedTuple):
    """The samples of a batch, (B,), with what is seen of them; the epoch, None in evaluation."""

    samples: Ints
    view: View
    epoch: int | None


class Memory:
    """Memory of batches, used again when nothing refers to the batch any more: new pages cost time."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=BATCHES_AHEAD + 2)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for a batch of that shape, uint8, with anything in it."""
        while self._free:
            memory = self._free.pop()
            if memory.shape == shape:
                break
        else:
            memory = np.empty(shape, np.uint8)
        lent = memory.view()  # which the tensor and all that look into it keep
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)


def choose_decoder(name: str) -> tuple[Decoder, dict[str, str | None]]:
    """Chooses by data.decode. Returns: the decoder, and what its pixels depend on, with versions.

    Raises: UserError where FFCV's kernels are asked for and not installed.
    """
    numpy = {"numpy": package_version("numpy")}  # draws the crops
    if name == "own":
        return decode, numpy | decoded_by()
    try:
        from en.data.ffcv import decode as kernels
    except ImportError as error:
        raise UserError(
            f"data.decode=ffcv: expected the package ffcv, which does not import ({error}): "
            "install exemplar-norm[ffcv], or leave it at own"
        ) from error
    return kernels.decode, numpy | kernels.made_by()


def refuse_unknown_labels(file: BetonFile, classes: int) -> None:
    """Raises UserError for class numbers that classes.json does not name."""
    lowest, highest = int(file.targets.min()), int(file.targets.max())
    if highest >= classes or lowest < 0:
        label = lowest if lowest < 0 else highest
        raise UserError(f"{file.path}: label {label}: expected 0 to {classes - 1} by classes.json")


def labels_of(file: BetonFile) -> Ints:
    """The class numbers of a file, (samples,). Raises UserError for one of maps."""
    if file.field is not Field.INT:
        raise UserError(f"{file.path}: maps of classes: expected one class an image")
    return file.targets


class FfcvLoader:
    """Reads root/{split}.beton and root/classes.json (see ImageLoader).

    Raises: UserError for files that are missing, damaged or do not fit each other.
    """

    def __init__(self, root: Path, split: str, reading: Reading) -> None:
        self.classes, self.name = read_classes(root), read_name(root)
        if found := [each for each in ALL_SPLITS if (root / f"{each}.beton").exists()]:
            split = choose_split(root, split, found)
        self.split = split
        self._file = BetonFile(root / f"{split}.beton", reading.verify)
        self.samples, self.digest = len(self._file), self._file.digest
        self.made_by: Mapping[str, str | None]
        self._decoder, self.made_by = choose_decoder(reading.decode)
        self.target, self.palette = read_target(self._file), read_palette(root, len(self.classes))
        self.per_class: list[int] | None = None
        if self._file.field is Field.INT:
            refuse_unknown_labels(self._file, len(self.classes))
            self.per_class = np.bincount(self._file.targets, minlength=len(self.classes)).tolist()
        self._reading, self._memory = reading.of_set(read_cropped(root)), Memory()
        self._pool = ThreadPoolExecutor(max(1, reading.workers), thread_name_prefix=f"{split}-decode")

    def names(self) -> list[str]:
        return read_names(self._file)

    def labels(self) -> Ints:
        return labels_of(self._file)

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        batches = self._reading.part.training_batches(self.samples, epoch, first_step)
        return self._batches(self._train_job(samples, epoch, size) for samples in batches)

    def _train_job(self, samples: Ints, epoch: int, size: Size) -> Job:
        crop, seed = self._reading.training_crop, self._reading.part.seed
        return Job(samples, crop(seed, epoch, *self._places(samples), size), epoch)

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return self.eval_samples(self._reading.part.evaluation_samples(self.samples), size)

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        return self._batches(self._eval_job(batch, size) for batch in self._reading.part.batches(samples, size))

    def _eval_job(self, samples: Ints, size: Size | None) -> Job:
        crop, seed = self._reading.evaluation_crop, self._reading.part.seed
        return Job(samples, seen_in_evaluation(crop, seed, *self._places(samples), size), None)

    def _places(self, samples: Ints) -> tuple[Ints, Ints, Ints]:
        """The samples, and heights and widths of their images."""
        return samples, self._file.heights[samples], self._file.widths[samples]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, jobs: Iterable[Job]) -> Iterator[Batch]:
        """Keeps BATCHES_AHEAD batches in the making and hands each out when all its parts are done."""
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for job in jobs:
                waiting.append(self._submit(job))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            for _, parts in waiting:
                for part in parts:
                    part.cancel()

    def _submit(self, job: Job) -> tuple[Batch, list[Future[None]]]:
        self._file.check_length()
        size = len(job.samples)
        shape, pinned = (size, *job.view.size, 3), self._reading.pinned  # torch itself uses pinned memory again
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pinned else self._memory.take(shape)
        samples = torch.from_numpy(job.samples.copy())
        form = (size, *self.target.shape(job.view.size))
        targets = torch.empty(form, dtype=self.target.dtype, pin_memory=pinned)
        batch = Batch(images.permute(0, 3, 1, 2), targets, samples, [])
        step = -(-size // max(1, self._reading.workers))
        rows = [range(size)[start : start + step] for start in range(0, size, step)]
        return batch, [self._pool.submit(self._decode, job, part, images, batch) for part in rows]

    def _decode(self, job: Job, rows: range, images: Tensor, batch: Batch) -> None:
        """Decodes a part of a batch, and stand-ins for what is damaged there, in training if they are asked for."""
        part = slice(rows.start, rows.stop)
        mine = Job(job.samples[part], rows_of(job.view, part), job.epoch)
        refused = self._read(mine, images[part], batch.targets[part])
        for row, reason in refused.items():
            if job.epoch is None or not self._reading.skip_damaged:
                raise RunError(reason)
            self._stand_in(job.epoch, rows[row], images, batch, reason)

    def _read(self, job: Job, images: Tensor, targets: Tensor) -> dict[int, str]:
        """Reads samples into rows of a batch. Returns: what is wrong with those that are damaged, by their rows."""
        found: dict[int, Numbers] = {}
        wrong: dict[int, str] = {}
        for row, sample in enumerate(job.samples.tolist()):
            try:
                stored = self._file.stored(sample)
                self.target.check(stored, (int(self._file.heights[sample]), int(self._file.widths[sample])))
                found[row] = self.target.decode(stored)
            except UnusableImage as error:
                wrong[row] = f"{self._file.path}: sample {sample} is damaged: {error}"
        view = self._settled(job, found)
        refused = self._file.decode(job.samples, view, images, self._reading.padding, self._decoder)
        for row, target in found.items():
            targets.numpy()[row] = self.target.cut(target, view, row)
        return dict(sorted((wrong | refused).items()))

    def _settled(self, job: Job, targets: dict[int, Numbers]) -> View:
        """The view of a job, once the crop has looked at the targets, by row; damaged ones have none."""
        if job.epoch is None or not chooses(self._reading.training_crop):
            return job.view
        nothing = np.empty(0, np.uint8)

        def look(view: View, row: int) -> NDArray[Any]:
            return self.target.cut(targets[row], view, row) if row in targets else nothing

        crop, seed = self._reading.training_crop, self._reading.part.seed
        return choose(crop, look, seed, job.epoch, *self._places(job.samples), job.view.size)

    def _stand_in(self, epoch: int, row: int, images: Tensor, batch: Batch, reason: str) -> None:
        """The next sample of the set that is whole, in the place of a damaged one."""
        batch.damaged.append(reason)
        damaged, place = int(batch.samples[row]), slice(row, row + 1)
        for distance in range(1, min(STAND_INS, self.samples)):
            sample = (damaged + distance) % self.samples
            job = self._train_job(np.array([sample]), epoch, (images.shape[1], images.shape[2]))
            refused = self._read(job, images[place], batch.targets[place])
            if not refused:
                batch.samples[row] = sample
                return
            reason = refused[0]
        raise RunError(too_many_damaged(reason))

    def _finished(self, batch: Batch, parts: list[Future[None]]) -> Batch:
        deadline = time.monotonic() + self._reading.timeout_s
        try:
            for part in parts:
                part.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            first = int(batch.samples[0])
            raise RunError(
                f"{self._file.path}: no batch for {self._reading.timeout_s} s (data.timeout_s), waiting for the one "
                f"that begins with sample {first}"
            ) from None
        batch.damaged.sort()
        return batch
