"""The folder loader: image files read by a torch DataLoader, without preparation."""

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from en.data.crops import choose, seen_in_evaluation
from en.data.decoding import (
    HAS_LIBJPEG_WARNINGS,
    DamagedImage,
    UnsupportedImage,
    decode_image,
    decoders,
    read_file,
)
from en.data.foreign import refuse_foreign
from en.data.jpeg import RESAMPLING, library_or_none, of_pixels
from en.data.loader import STAND_INS, Batch, Reading, too_many_damaged
from en.data.order import Ints
from en.data.palette import varied
from en.data.showing import show
from en.data.sources import ALL_SPLITS, Sample, Source, as_text, read_folders, read_form
from en.data.sources.source import choose_split
from en.data.targets import Field
from en.errors import RunError, UserError, is_reporter, warn
from en.machine import package_version
from en.size import Size

TRAIN, EVAL = 0, 1
PREFETCH = 2  # batches that each worker makes ahead
SHARED_MEMORY = Path("/dev/shm")
GRACE_S = 2.0  # after data.timeout_s, for the DataLoader's own error; after an error, for a dying worker to end
Key = tuple[int, int, Size | None, int]  # TRAIN or EVAL, epoch, size, sample


Item = (
    tuple[Tensor, NDArray[Any], int, list[str]] | str
)  # image, target, sample, damaged files; or the message that names a damaged one


class Images(Dataset[Item]):
    """Image files, decoded as preparation does and cropped to the boxes of (seed, epoch, sample)."""

    def __init__(self, source: Source, split: str, reading: Reading) -> None:
        self._samples, self._reading = source.splits[split], reading
        self._target, self._classes = source.target, len(source.classes)

    def __getitem__(self, key: Key) -> Item:
        """One sample, (3, H, W) uint8; for a damaged one a message or, with skip_damaged, the next whole one."""
        mode, epoch, size, index = key
        damaged: list[str] = []
        for distance in range(min(STAND_INS, len(self._samples))):
            found = self._read(mode, epoch, size, (index + distance) % len(self._samples))
            if not isinstance(found, str):
                return *found, damaged
            if mode == EVAL or not self._reading.skip_damaged:
                return found
            damaged.append(found)
        return too_many_damaged(damaged[-1])

    def _read(self, mode: int, epoch: int, size: Size | None, index: int) -> tuple[Tensor, NDArray[Any], int] | str:
        sample = self._samples[index]
        assert isinstance(sample.image, Path)
        try:
            picture = decode_image(read_file(sample.image))
            image = picture.image
            target = self._target.load(sample.target, self._classes, (image.height, image.width))
        except UnsupportedImage as error:
            return f"{sample.place}: not supported: {error}"
        except DamagedImage as error:
            return f"{sample.place}: damaged: {error}"
        if picture.warning:
            return f"{sample.place}: damaged: {picture.warning}"
        seed, place = self._reading.part.seed, (np.array([index]), np.array([image.height]), np.array([image.width]))
        if mode == TRAIN:
            assert size is not None
            view = choose(self._reading.training_crop, partial(self._target.cut, target), seed, epoch, *place, size)
        else:
            view = seen_in_evaluation(self._reading.evaluation_crop, seed, *place, size)
        pixels, out = np.ascontiguousarray(image), torch.empty((1, *view.size, 3), dtype=torch.uint8)
        if refused := show(of_pixels(pixels), view, self._reading.padding, out):
            return f"{sample.place}: {refused[0]}"
        return out[0].permute(2, 0, 1), self._target.cut(target, view, 0), index


def collate(items: list[Item]) -> Batch | str:
    """A batch of the items, or the first message among them."""
    for item in items:
        if isinstance(item, str):
            return item
    images, targets, samples, damaged = zip(*items, strict=True)
    return Batch(
        torch.stack(images),
        torch.from_numpy(np.stack(targets)),
        torch.tensor(samples),
        [name for names in damaged for name in names],
    )


class Keys:
    """The batches that the DataLoader makes next; set before each epoch, so that workers live on between epochs."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def names_digest(root: Path, samples: Sequence[Sample]) -> str:
    """SHA-256 of the samples' paths below the root, in their order; the same however the root is written."""
    digest = hashlib.sha256()
    for sample in samples:
        assert isinstance(sample.image, Path)
        for path in (sample.image, sample.target) if isinstance(sample.target, Path) else (sample.image,):
            # As in runs from before, where a root other than "." was cut off from the name alone.
            digest.update(f"/{as_text(str(path.relative_to(root)))}\0".encode())
    return digest.hexdigest()


def set_up_worker(worker: int) -> None:
    """Starts a worker: signals that stop a run reach its workers too, which have to work until the step is finished.

    What it fails of once a batch is made, when that is put into shared memory, reaches the parent in the batch's place;
    Python would print it and let the parent wait.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = send_reason  # type: ignore[attr-defined]


def send_reason(queue: "Queue[object]", error: Exception, lost: tuple[int, object]) -> None:
    """Sends a message in the place of a batch, `lost`, that cannot be sent."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    queue.put((lost[0], f"DataLoader worker (pid {os.getpid()}) could not hand over a batch: {reason}; {sharing()}"))


def sharing() -> str:
    """Says how much shared memory there is to hand over batches, and how to do without it."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        there = f"{SHARED_MEMORY}: {error.strerror}"
    else:
        there = f"{SHARED_MEMORY} has {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB free"
    return f"{there}: expected room for {PREFETCH + 1} batches of each worker, or data.workers=0"


@cache
def warn_of_silent_libjpeg() -> None:
    warn("data.loader=folder without the package ffcv: JPEG files that libjpeg only warns of count as whole")


def made_by() -> dict[str, str | None]:
    """Names the libraries that draw crops, decode and resize here, with their versions (see ImageLoader)."""
    return {"numpy": package_version("numpy"), "resampling": RESAMPLING} | decoders()


def images_of_classes(targets: list[int | Path | NDArray[np.uint8]], classes: int) -> list[int] | None:
    """Counts the images of each class; None where targets are maps."""
    numbers = [target for target in targets if isinstance(target, int)]
    return np.bincount(numbers, minlength=classes).tolist() if len(numbers) == len(targets) else None


def read_files(root: Path) -> Source:
    """The image files in a folder, by the form that they come in. Raises: UserError, also for a form without files."""
    source = (read_form(root) if root.is_dir() else None) or read_folders(root)
    if not all(isinstance(sample.image, Path) for samples in source.splits.values() for sample in samples[:1]):
        raise UserError(f"{root}: {source.name} has no image files: expected those, or data.loader=ffcv")
    return source


class FolderLoader:
    """Reads the image files in a folder, of root/{train,val}/CLASS/** or another form (see ImageLoader).

    Raises: UserError for a folder of another form, and for files in val that are no images, which training would meet
        only after its first epoch.
    """

    def __init__(self, root: Path, split: str, reading: Reading) -> None:
        if not HAS_LIBJPEG_WARNINGS and reading.part.rank == 0:
            warn_of_silent_libjpeg()
        if (root / "classes.json").is_file() and not any((root / each).exists() for each in ALL_SPLITS):
            raise UserError(f"{root}: prepared data, without class folders: expected those, or data.loader=ffcv")
        source = read_files(root)
        self.split = split = choose_split(root, split, source.splits)
        samples = source.splits[split]
        if split != "train" and is_reporter():
            refuse_foreign(root / split if (root / split).is_dir() else root, samples)
        self.name, self.classes, self.samples = source.name, source.classes, len(samples)
        self.target, self.palette = source.target, source.palette or varied(len(source.classes))
        self.per_class = images_of_classes([sample.target for sample in samples], len(source.classes))
        self.digest, reading = names_digest(root, samples), reading.of_set(source.cropped)
        self.made_by: Mapping[str, str | None] = made_by()
        library_or_none()  # compiled before workers ask for it
        self._root, self._reading, self._samples = root, reading, samples
        self._keys, self._asked_at = Keys(), 0.0
        workers = reading.workers
        self._loader: DataLoader[Item] = DataLoader(
            Images(source, split, reading),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=reading.pinned,
            timeout=reading.timeout_s if workers else 0,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=set_up_worker,
            # Its own, so that the workers' seeds are not drawn from the training's numbers.
            generator=torch.Generator(),
        )
        # For one that nobody closes: else Python would end, and wait for, workers that ignore its signal.
        Finalize(self, end_workers, [self._loader], exitpriority=0)

    def names(self) -> list[str]:
        return [sample.name for sample in self._samples]

    def labels(self) -> Ints:
        if self.target.field is not Field.INT:
            raise UserError(f"{self._root}: {self.target.words}: expected one class an image")
        return np.array([sample.target for sample in self._samples], np.int64)

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        batches = self._reading.part.training_batches(self.samples, epoch, first_step)
        return self._batches([[(TRAIN, epoch, size, int(i)) for i in batch] for batch in batches])

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return self.eval_samples(self._reading.part.evaluation_samples(self.samples), size)

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        batches = self._reading.part.batches(samples, size)
        return self._batches([[(EVAL, 0, size, int(i)) for i in batch] for batch in batches])

    def close(self) -> None:
        end_workers(self._loader)

    def _batches(self, keys: list[list[Key]]) -> Iterator[Batch]:
        self._keys.batches = keys
        self._asked_at = time.monotonic()
        try:
            batches = iter(self._loader)
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, str):
                    raise RunError(batch)
                yield batch
        except (RuntimeError, EOFError, OSError) as error:
            raise RunError(f"{self._root}: the data loader failed: {self._cause(error)}") from error

    def _cause(self, error: Exception) -> str:
        """Says what the DataLoader failed of: a worker that ended, workers without a batch, or what the error says."""
        limit, passed, workers = self._reading.timeout_s, time.monotonic() - self._asked_at, self._workers()
        killed_here = passed > limit + GRACE_S
        if not killed_here and (end := end_of_a_worker(workers, GRACE_S if passed <= limit else 0)):
            return end
        if workers and passed > limit:
            return f"DataLoader workers gave nothing for {limit} s (data.timeout_s)"
        return (str(error).splitlines() or [type(error).__name__])[0]

    def _workers(self) -> list[BaseProcess]:
        return getattr(self._loader._iterator, "_workers", [])

    def _next(self, batches: Iterator[Batch | str]) -> Batch | str | None:
        """The next batch; None after the last.

        The DataLoader's own time limit does not hold while it receives what a worker has announced. So its workers are
        killed soon after, which ends that too.
        """
        # The workers and not self, which the thread would keep alive for a moment.
        watchdog = threading.Timer(self._reading.timeout_s + GRACE_S, kill, [self._workers()])
        watchdog.daemon = True
        watchdog.start()
        self._asked_at = time.monotonic()
        try:
            return next(batches, None)
        finally:
            watchdog.cancel()


def end_workers(loader: DataLoader[Item]) -> None:
    """Ends a loader's workers, stuck ones too: they ignore the signal with which torch and Python end them."""
    iterator, loader._iterator = loader._iterator, None
    shut_down = getattr(iterator, "_shutdown_workers", None)  # torch has no other way to end them early
    if shut_down is not None:
        shut_down()
    kill(getattr(iterator, "_workers", []))


def kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def end_of_a_worker(workers: list[BaseProcess], within_s: float) -> str:
    """Says how the first worker that has ended did so, or ends within that time; empty if there is none.

    A worker's sockets close before it counts as ended, so that the error of a receiver may come first.
    """
    ended = wait([worker.sentinel for worker in workers], within_s) if workers else []
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(GRACE_S)  # a sentinel closes as early as a socket
        code = worker.exitcode
        if code is not None:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
            cause = f"; {sharing()}" if code == -signal.SIGBUS else ""
            return f"DataLoader worker (pid {worker.pid}) {how}{cause}"
    return ""
