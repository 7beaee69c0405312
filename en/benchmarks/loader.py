"""The loader of FFCV's files against FFCV's kernels, the folder loader, timm's and FFCV's own: images a second."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from en.benchmarks.photographs import HEIGHT, QUALITY, WIDTH, make_images
from en.benchmarks.timing import Measured, hardware, interleaved, median, show, write
from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.sources import read_folders
from en.errors import UserError
from en.progress import tell

CROP, RAW_SIDE, BATCH = 224, 256, 64
FFCV, AS_IS, RAW, FOLDER = "ffcv", "ffcv, without markers", f"ffcv, raw {RAW_SIDE}", "folder"
KERNELS = "ffcv, FFCV's kernels"
TIMM, TIMM_DEFAULT, STOCK = "timm, same augmentation", "timm, its own augmentation", "FFCV's own, unseeded"
STORED = {"jpeg": ("jpeg", None), "as-is": ("as-is", None), "raw": ("raw", RAW_SIDE)}


def benchmark_loader(images: int, workers: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of whole epochs by loader, also by CPU time, and the time to the first batch."""
    from en.data.preparation.prepare import Storage, prepare

    if images < BATCH:
        raise UserError(f"--images {images}: expected at least one batch of {BATCH}")
    where = hardware("cpu", workers).replace("threads", "workers")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = make_images(root / "folder", images, workers)
        print(
            f"{images} JPEGs of {WIDTH} x {HEIGHT} pixels, {size / images / 1000:.0f} kB each, "
            f"quality {QUALITY}; {where}; load {os.getloadavg()[0]:.1f}"
        )
        for name, (kind, side) in STORED.items():
            prepare(read_folders(root / "folder"), root / name, Storage(kind, side), workers, skip_corrupt=False)
        cpu: dict[str, list[float]] = {}
        seconds = interleaved(epochs(root, workers, cpu), rounds, "loaders", warmups=1)
        rows = [row_of(name, images, seconds, {name: one[1:] for name, one in cpu.items()}) for name in seconds]
        show(f"crop {CROP}, batches of {BATCH}; load {os.getloadavg()[0]:.1f}", rows)
        starts = [{"loader": name, "seconds to the first batch": first_batch(name, root, workers)} for name in seconds]
        show("from construction to the first batch, in a second process", starts)
    write(out, {"hardware": where, "images": images, "bytes": size, "rows": rows, "starts": starts})


def row_of(name: str, images: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]]) -> Measured:
    """Speeds of a loader, and the medians over the rounds of FFCV's over its own."""
    row: Measured = {"loader": name}
    for unit, taken in (("s", seconds), ("CPU s", cpu)):
        row[f"images/{unit}"] = images / median(taken[name])
        row[f"ffcv / it by {unit}"] = median([a / b for a, b in zip(taken[name], taken[FFCV], strict=True)])
    return row


def epochs(root: Path, workers: int, cpu: dict[str, list[float]]) -> dict[str, Callable[[], object]]:
    """Makes what runs an epoch of each loader that is installed, once, so that workers are warm.

    Args:
        cpu: gets the seconds of processors that each epoch has taken.
    """
    cases: dict[str, Callable[[], object]] = {}
    for name, make in makers(root, workers).items():
        try:
            cases[name] = partial(measured, make(), cpu.setdefault(name, []))
        except (ImportError, UserError) as error:
            tell(f"{name}: left out: {error}")
    return cases


def measured(epoch: Callable[[], Iterable[Any]], cpu: list[float]) -> None:
    """Goes through an epoch and notes the processors' seconds of it, in this process and its children."""
    before = processors_seconds()
    consume(epoch)
    cpu.append(processors_seconds() - before)


def processors_seconds() -> float:
    """Seconds that this process, its children that have ended and those that live have computed."""
    times, ticks = os.times(), os.sysconf("SC_CLK_TCK")
    total = times.user + times.system + times.children_user + times.children_system
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks  # utime, stime: proc(5)
    return total


def consume(epoch: Callable[[], Iterable[Any]]) -> int:
    """Goes through an epoch; the number of its batches."""
    return sum(1 for _ in epoch())


def makers(root: Path, workers: int) -> dict[str, Callable[[], Callable[[], Iterable[Any]]]]:
    """By loader, what constructs it and returns what begins an epoch."""
    return {
        FFCV: partial(ours, "ffcv", root / "jpeg", workers),
        AS_IS: partial(ours, "ffcv", root / "as-is", workers),
        KERNELS: partial(ours, "ffcv", root / "as-is", workers, decode="ffcv"),
        RAW: partial(ours, "ffcv", root / "raw", workers),
        FOLDER: partial(ours, "folder", root / "folder", workers),
        TIMM: partial(timms, root / "folder" / "train", workers, color_jitter=0.0, interpolation="bilinear"),
        TIMM_DEFAULT: partial(timms, root / "folder" / "train", workers),
        STOCK: partial(stock, root / "as-is" / "train.beton", workers),
    }


def ours(kind: str, root: Path, workers: int, decode: str = "own") -> Callable[[], Iterable[Any]]:
    """Epochs of other crops each time, since a processor learns those that return."""
    reading = Reading(
        part=Part(BATCH, 1, 0, 1, 0),
        training_crop=RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5),
        evaluation_crop=CentreCrop(0.875),
        workers=workers,
        timeout_s=60,
        pinned=False,
        decode=decode,
    )
    loader, numbers = LOADERS[kind](root, "train", reading), itertools.count()
    return lambda: loader.train_epoch(next(numbers), (CROP, CROP))


def timms(root: Path, workers: int, **augmentation: Any) -> Callable[[], Iterable[Any]]:
    from timm.data import create_dataset, create_loader

    return partial(
        iter,
        create_loader(
            create_dataset("", root=str(root)),
            input_size=(3, CROP, CROP),
            batch_size=BATCH,
            is_training=True,
            num_workers=workers,
            device=torch.device("cpu"),
            **augmentation,
        ),
    )


def stock(path: Path, workers: int) -> Callable[[], Iterable[Any]]:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((CROP, CROP)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    loader = Loader(
        str(path), batch_size=BATCH, num_workers=workers, order=OrderOption.RANDOM, os_cache=True, pipelines=pipelines
    )
    return partial(iter, loader)


def first_batch(name: str, root: Path, workers: int) -> float:
    """Seconds from constructing a loader to its first batch, in a fresh process that is not the first one to do so."""
    code = (
        "import sys; from pathlib import Path; from en.benchmarks.loader import seconds_to_first; "
        "print(seconds_to_first(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, name, str(root), str(workers)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def seconds_to_first(name: str, root: Path, workers: int) -> float:
    started = time.perf_counter()
    next(iter(makers(root, workers)[name]()()))
    return time.perf_counter() - started
