"""The FFCV loader: FFCV's file and C kernels, driven by threads of our own.

Stock FFCV compiles its pipeline at each start, draws crops from unseeded generators, ignores the decoder's return code and
leaves the trainer waiting when its thread dies. Here threads call the same two C functions (libjpeg decode and OpenCV area
resize, both without the GIL) on boxes drawn beforehand from (seed, epoch, sample), so that nothing is compiled, any number
of threads gives the same pixels, and a failure reaches the trainer as an exception.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from en.data.beton import BetonFile, read_classes, read_name
from en.data.loading import Batch, Reading
from en.data.sampling import Ints, centre_boxes, epoch_order, random_boxes, rank_batches
from en.errors import RunError, UserError

BATCHES_AHEAD = 3
Flips = NDArray[np.bool_]


class Task(NamedTuple):
    """The samples of a batch, (B,), with the box, (B, 4), and flip, (B,), of each."""

    samples: Ints
    boxes: Ints
    flips: Flips

    def part(self, span: slice) -> "Task":
        return Task(self.samples[span], self.boxes[span], self.flips[span])


class FfcvLoader:
    """Reads root/{split}.beton and root/classes.json (see ImageLoader).

    Raises: UserError for files that are missing, damaged or do not fit each other.
    """

    def __init__(self, root: Path, split: str, reading: Reading) -> None:
        self.name, self.classes = read_name(root), read_classes(root)
        self._file = BetonFile(root / f"{split}.beton")
        self.samples = len(self._file)
        highest = int(self._file.labels.max())
        if highest >= len(self.classes) or self._file.labels.min() < 0:
            raise UserError(f"{self._file.path}: label {highest}: expected 0 to {len(self.classes) - 1} by classes.json")
        self._reading = reading
        self._pool = ThreadPoolExecutor(max(1, reading.workers), thread_name_prefix=f"{split}-decode")
        self._local = threading.local()

    def train_epoch(self, epoch: int, resolution: int) -> Iterator[Batch]:
        share, augmentation = self._reading.share, self._reading.augmentation
        order = epoch_order(self.samples, share.seed, epoch)
        batches = rank_batches(order, share.batch_size, share.accumulation, share.rank, share.world_size)

        def task(samples: Ints) -> Task:
            heights, widths = self._file.heights[samples], self._file.widths[samples]
            return Task(samples, *random_boxes(share.seed, epoch, samples, heights, widths, augmentation))

        return self._batches(map(task, batches), resolution)

    def eval_epoch(self, resolution: int) -> Iterator[Batch]:
        share = self._reading.share
        mine = np.arange(share.rank, self.samples, share.world_size)
        size = share.micro_batch

        def task(samples: Ints) -> Task:
            boxes = centre_boxes(self._file.heights[samples], self._file.widths[samples], self._reading.centre_share)
            return Task(samples, boxes, np.zeros(len(samples), bool))

        return self._batches((task(mine[start : start + size]) for start in range(0, len(mine), size)), resolution)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, tasks: Iterable[Task], resolution: int) -> Iterator[Batch]:
        """Keeps BATCHES_AHEAD batches in the making and hands each out when all its parts are done."""
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for task in tasks:
                waiting.append(self._submit(task, resolution))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            for _, parts in waiting:
                for part in parts:
                    part.cancel()

    def _submit(self, task: Task, resolution: int) -> tuple[Batch, list[Future[None]]]:
        size = len(task.samples)
        images = torch.empty((size, resolution, resolution, 3), dtype=torch.uint8, pin_memory=self._reading.pinned)
        labels = torch.from_numpy(self._file.labels[task.samples])
        step = -(-size // max(1, self._reading.workers))
        spans = [slice(start, start + step) for start in range(0, size, step)]
        parts = [self._pool.submit(self._decode, task.part(span), images[span]) for span in spans]
        return Batch(images.permute(0, 3, 1, 2), labels, torch.from_numpy(task.samples)), parts

    def _decode(self, task: Task, images: torch.Tensor) -> None:
        scratch = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = np.empty(self._file.largest(), np.uint8)
        for sample, box, flip, out in zip(*(column.tolist() for column in task), images.numpy(), strict=True):
            self._file.decode(sample, box, out, scratch)
            if flip:
                out[:] = out[:, ::-1].copy()

    def _finished(self, batch: Batch, parts: list[Future[None]]) -> Batch:
        try:
            for part in parts:
                part.result(self._reading.timeout_s)
        except FutureTimeoutError:
            first = int(batch.samples[0])
            raise RunError(
                f"{self._file.path}: no batch for {self._reading.timeout_s} s (data.timeout_s), waiting for the one that "
                f"begins with sample {first}"
            ) from None
        return batch
