"""Encodes samples in several processes, in their order, with bounded memory."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from en.data.decoding import DamagedImage
from en.data.preparation.encode import Held, Storage, encode
from en.data.preparation.remarks import Checked
from en.data.sources import Sample, Source
from en.progress import Progress

CHUNK = 8  # samples that a worker takes at a time
PR_SET_PDEATHSIG = 1  # linux/prctl.h
Chunk = list[Sample]


def encode_all(
    source: Source, split: str, storage: Storage, workers: int, numbers: range, done: int
) -> Generator[Checked, None, None]:
    """Encodes samples of a split in several processes, but for the first `done`, and yields them in order.

    Args:
        numbers: of the samples in the split.
    """
    samples = source.splits[split]
    context = multiprocessing.get_context("fork")
    encoding = partial(encode, storage=storage, target=source.target, classes=len(source.classes))
    parts = (numbers[at : at + CHUNK] for at in range(done, len(numbers), CHUNK))
    gc.freeze()  # else each worker's collector would write to, and so copy, all that the parent holds
    try:
        with (
            ProcessPoolExecutor(workers, context, end_with_parent, (os.getpid(),)) as pool,
            Progress(f"{source.name}: {split}", len(numbers), before=done) as progress,
        ):
            chunks = map(partial(chunk_of, samples), parts)
            for checked in bounded(pool, partial(encode_chunk, encoding), chunks, 2 * workers):
                progress.advance()
                yield checked
    finally:
        gc.unfreeze()


def bounded(
    pool: ProcessPoolExecutor,
    work: Callable[[Chunk], list[Checked]],
    chunks: Iterable[Chunk],
    ahead: int,
) -> Iterator[Checked]:
    """Yields what work makes of chunks, in their order; at most so many are ahead, which is what bounds memory."""
    waiting: deque[Future[list[Checked]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def chunk_of(samples: Sequence[Sample], numbers: range) -> Chunk:
    return [read_in_order(samples[number]) for number in numbers]


def read_in_order(sample: Sample) -> Sample:
    """Reads a sample's file here and now if one process that reads all in their order is what reads them fast."""
    if isinstance(sample.image, Path | np.ndarray) or not sample.image.in_order:
        return sample
    try:
        return replace(sample, image=Held(sample.image.read()))
    except DamagedImage as error:
        return replace(sample, image=Held(error))


def encode_chunk(encoding: Callable[[Sample], Checked], chunk: Chunk) -> list[Checked]:
    return [encoding(sample) for sample in chunk]


def end_with_parent(parent: int) -> None:
    """Sets up a worker: it leaves a signal that stops preparation to the parent, and dies when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl
