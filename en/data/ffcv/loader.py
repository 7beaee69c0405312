"""The FFCV loader: FFCV's file and C kernels, driven by threads of our own.

Stock FFCV compiles its pipeline at each start, draws crops from unseeded generators, ignores the decoder's return code
and leaves the trainer waiting when its thread dies. Here threads call the libraries that it calls (libjpeg's decoder
and OpenCV's area resize, both without the GIL) on boxes drawn beforehand from (seed, epoch, sample), so that nothing is
compiled, any number of threads gives the same pixels, and a failure reaches the trainer as an exception.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from en.data.crops import Crop
from en.data.decoding import UnusableImage
from en.data.ffcv.file import BetonFile, read_classes, read_name, read_target
from en.data.ffcv.kernels import Bytes, libjpeg_version, opencv_version
from en.data.loader import STAND_INS, Batch, Reading, too_many_damaged
from en.data.order import Ints
from en.data.targets import Field
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


def made_by() -> dict[str, str | None]:
    """Names the libraries that draw crops, decode and resize here, with their versions (see ImageLoader)."""
    packages = {name: package_version(name) for name in ("numpy", "ffcv")}
    return packages | {"opencv": opencv_version(), "libjpeg_turbo": libjpeg_version()}


def refuse_unknown_labels(file: BetonFile, classes: int) -> None:
    """Raises UserError for class numbers that classes.json does not name."""
    lowest, highest = int(file.targets.min()), int(file.targets.max())
    if highest >= classes or lowest < 0:
        label = lowest if lowest < 0 else highest
        raise UserError(f"{file.path}: label {label}: expected 0 to {classes - 1} by classes.json")


class FfcvLoader:
    """Reads root/{split}.beton and root/classes.json (see ImageLoader).

    Raises: UserError for files that are missing, damaged or do not fit each other.
    """

    def __init__(self, root: Path, split: str, reading: Reading) -> None:
        self.classes, self.name = read_classes(root), read_name(root)
        self._file = BetonFile(root / f"{split}.beton")
        self.samples, self.digest = len(self._file), self._file.digest
        self.made_by: Mapping[str, str | None] = made_by()
        self.target = read_target(self._file)
        if self._file.field is Field.INT:
            refuse_unknown_labels(self._file, len(self.classes))
        self._reading = reading
        self._pool = ThreadPoolExecutor(max(1, reading.workers), thread_name_prefix=f"{split}-decode")
        self._local = threading.local()

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        batches = self._reading.part.training_batches(self.samples, epoch, first_step)
        return self._batches(self._train_job(samples, epoch, size) for samples in batches)

    def _train_job(self, samples: Ints, epoch: int, size: Size) -> Job:
        return Job(samples, self._view(self._reading.training_crop, epoch, samples, size), epoch)

    def eval_epoch(self, size: Size) -> Iterator[Batch]:
        return self.eval_samples(self._reading.part.evaluation_samples(self.samples), size)

    def eval_samples(self, samples: Ints, size: Size) -> Iterator[Batch]:
        return self._batches(self._eval_job(batch, size) for batch in self._reading.part.batches(samples))

    def _eval_job(self, samples: Ints, size: Size) -> Job:
        return Job(samples, self._view(self._reading.evaluation_crop, 0, samples, size), None)

    def _view(self, crop: Crop, epoch: int, samples: Ints, size: Size) -> View:
        heights, widths = self._file.heights[samples], self._file.widths[samples]
        return crop(self._reading.part.seed, epoch, samples, heights, widths, size)

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
        images = torch.empty((size, *job.view.size, 3), dtype=torch.uint8, pin_memory=self._reading.pinned)
        samples = torch.from_numpy(job.samples.copy())
        form = (size, *self.target.shape(job.view.size))
        targets = torch.empty(form, dtype=self.target.dtype, pin_memory=self._reading.pinned)
        batch = Batch(images.permute(0, 3, 1, 2), targets, samples, [])
        step = -(-size // max(1, self._reading.workers))
        rows = [range(size)[start : start + step] for start in range(0, size, step)]
        return batch, [self._pool.submit(self._decode, job, part, images.numpy(), batch) for part in rows]

    def _decode(self, job: Job, rows: range, images: Bytes, batch: Batch) -> None:
        scratch = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = self._file.scratch()
        for row in rows:
            try:
                batch.targets.numpy()[row] = self._decode_one(job, row, images[row], scratch)
            except RunError as error:
                if job.epoch is None or not self._reading.skip_damaged:
                    raise
                self._stand_in(job.epoch, row, images[row], scratch, batch, error)

    def _decode_one(self, job: Job, row: int, out: Bytes, scratch: Bytes) -> NDArray[Any]:
        """Decodes an image into `out`. Returns: its target. Raises: RunError for either that is damaged."""
        sample = int(job.samples[row])
        seen = job.view.seen(row, int(self._file.heights[sample]), int(self._file.widths[sample]))
        if seen is None:
            out[:] = self._reading.padding
        elif (inner := out[seen.rows, seen.columns]).shape == out.shape:
            self._file.decode(sample, seen.box, out, scratch)
        else:
            out[:] = self._reading.padding
            part = np.empty(inner.shape, np.uint8)  # in one piece, as the decoder writes
            self._file.decode(sample, seen.box, part, scratch)
            inner[:] = part
        if job.view.flips[row]:
            out[:] = out[:, ::-1].copy()
        try:
            return self.target.cut(self._file.stored(sample), job.view, row)
        except UnusableImage as error:
            raise RunError(f"{self._file.path}: sample {sample} is damaged: {error}") from error

    def _stand_in(self, epoch: int, row: int, out: Bytes, scratch: Bytes, batch: Batch, error: RunError) -> None:
        """The next sample of the set that is whole, in the place of a damaged one."""
        batch.damaged.append(str(error))
        damaged = int(batch.samples[row])
        for distance in range(1, min(STAND_INS, self.samples)):
            sample = (damaged + distance) % self.samples
            try:
                job = self._train_job(np.array([sample]), epoch, out.shape[:2])
                target = self._decode_one(job, 0, out, scratch)
            except RunError as other:
                error = other
                continue
            batch.samples[row], batch.targets.numpy()[row] = sample, target
            return
        raise RunError(too_many_damaged(str(error)))

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
