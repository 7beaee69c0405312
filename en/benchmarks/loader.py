"""The FFCV loader against the folder loader, timm's and FFCV's own: the same JPEGs, the same number of workers."""

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
from en.benchmarks.timing import Row, hardware, interleaved, median, show, write
from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.sources import read_folders
from en.errors import UserError
from en.progress import tell

CROP, RAW_SIDE, BATCH = 224, 256, 64
FFCV, RAW, FOLDER = "ffcv", f"ffcv, raw {RAW_SIDE}", "folder"
TIMM, TIMM_DEFAULT, STOCK = "timm, same augmentation", "timm, its own augmentation", "FFCV's own, unseeded"
RATIOS = ((FFCV, FOLDER), (FFCV, TIMM), (FFCV, TIMM_DEFAULT), (RAW, FOLDER), (FFCV, STOCK))


def benchmark_loader(images: int, workers: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of a whole epoch by loader, the ratios that are claimed, and the time to the first batch."""
    from en.data.preparation.prepare import Storage, prepare  # needs the package ffcv

    if images < BATCH:
        raise UserError(f"--images {images}: expected at least one batch of {BATCH}")
    where = hardware("cpu", workers).replace("threads", "workers")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = make_images(root / "folder", images, workers)
        print(
            f"{images} JPEGs of {WIDTH} x {HEIGHT} pixels, {size / images / 1000:.0f} kB each, "
            f"quality {QUALITY}; {where}"
        )
        storages = {"jpeg": Storage("jpeg"), "raw": Storage("raw", max_side=RAW_SIDE)}
        for name, storage in storages.items():
            prepare(read_folders(root / "folder"), root / name, storage, workers, skip_corrupt=False)
        cases = epochs(root, workers)
        seconds = interleaved(cases, rounds, "loaders", warmups=1)
        speeds = {name: images / median(values) for name, values in seconds.items()}
        show(
            f"images/s, crop {CROP}, batches of {BATCH}",
            [{"loader": name, "images/s": speed} for name, speed in speeds.items()],
        )
        ratios: list[Row] = [{"ratio": f"{a} / {b}", "value": speeds[a] / speeds[b]} for a, b in RATIOS if b in speeds]
        show("ratios", ratios)
        starts = [{"loader": name, "seconds to the first batch": first_batch(name, root, workers)} for name in speeds]
        show("from construction to the first batch, in a second process", starts)
    report = {"hardware": where, "images": images, "bytes": size, "speeds": speeds, "ratios": ratios, "starts": starts}
    write(out, report)


def epochs(root: Path, workers: int) -> dict[str, Callable[[], object]]:
    """What runs an epoch of each loader that is installed, made once, so that workers are warm."""
    cases: dict[str, Callable[[], object]] = {
        name: partial(consume, make()) for name, make in makers(root, workers).items() if name != STOCK
    }
    try:
        cases[STOCK] = partial(consume, makers(root, workers)[STOCK]())
    except ImportError as error:
        tell(f"{STOCK}: left out: {error}")
    return cases


def consume(epoch: Callable[[], Iterable[Any]]) -> int:
    """Goes through an epoch; the number of its batches."""
    return sum(1 for _ in epoch())


def makers(root: Path, workers: int) -> dict[str, Callable[[], Callable[[], Iterable[Any]]]]:
    """By loader, what constructs it and returns what begins an epoch."""
    return {
        FFCV: partial(ours, "ffcv", root / "jpeg", workers),
        FOLDER: partial(ours, "folder", root / "folder", workers),
        TIMM: partial(timms, root / "folder" / "train", workers, color_jitter=0.0, interpolation="bilinear"),
        TIMM_DEFAULT: partial(timms, root / "folder" / "train", workers),
        RAW: partial(ours, "ffcv", root / "raw", workers),
        STOCK: partial(stock, root / "jpeg" / "train.beton", workers),
    }


def ours(kind: str, root: Path, workers: int) -> Callable[[], Iterable[Any]]:
    reading = Reading(
        part=Part(BATCH, 1, 0, 1, 0),
        training_crop=RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5),
        evaluation_crop=CentreCrop(0.875),
        workers=workers,
        timeout_s=60,
        pinned=False,
    )
    loader = LOADERS[kind](root, "train", reading)
    return lambda: loader.train_epoch(0, (CROP, CROP))


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
