"""The loader of FFCV's files against FFCV's kernels, the folder loader and those of other packages: images a second."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from en.benchmarks.peers import PEERS, RATIO, SCALE
from en.benchmarks.photographs import KINDS, Kind, make_images
from en.benchmarks.timing import Measured, hardware, median, show, write
from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.sources import read_folders
from en.errors import UserError
from en.progress import Progress, tell

RAW_SIDE, BATCH = 256, 64
FFCV, AS_IS, RAW, FOLDER = "ffcv", "ffcv, without markers", f"ffcv, raw {RAW_SIDE}", "folder"
KERNELS = "ffcv, FFCV's kernels"
TIMM, TIMM_DEFAULT, STOCK = "timm, same augmentation", "timm, its own augmentation", "FFCV's own, unseeded"
TORCHVISION = "torchvision.io and v2"
MAPPING = (FFCV, AS_IS, KERNELS, RAW)  # in one process
STORED = {"jpeg": ("jpeg", None), "as-is": ("as-is", None), "raw": ("raw", RAW_SIDE)}
Epoch = Callable[[], "tuple[float, float]"]  # goes through it; seconds, and the processors' of it


class Images(NamedTuple):
    """Names what is loaded: the files' folder, each's kind, and the side that crops are resized to."""

    root: Path
    kind: Kind
    side: int


def benchmark_loader(
    images: int,
    photos: Path | None,
    sizes: list[int],
    peers: str | None,
    workers: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Prints images/s of whole epochs by loader, also by CPU time, by kind of file and size of crop.

    Args:
        photos: a folder of JPEGs, of which mosaics are made; None: noise with the spectrum of photographs.
        sizes: sides of the crops.
        peers: a Python whose environment has packages of peers.py; None: without them.
    """
    if images < BATCH:
        raise UserError(f"--images {images}: expected at least one batch of {BATCH}")
    where = hardware("cpu", workers).replace("threads", "workers")
    print(f"{where}; load {os.getloadavg()[0]:.1f}; {'noise' if photos is None else 'mosaics of photographs'}")
    report = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            size = make_images(root / "folder", kind, photos, images, workers)
            store(root, workers)
            print(f"\n{images} files of {size / images / 1000:.0f} kB, {kind}")
            for side in sizes:
                seconds, cpu = measured(Images(root, kind, side), workers, peers, rounds)
                rows = [row_of(name, images // BATCH * BATCH, seconds, cpu) for name in seconds]
                show(f"crops to {side} x {side}, batches of {BATCH}; load {os.getloadavg()[0]:.1f}", rows)
                report.append({"kind": str(kind), "side": side, "bytes": size, "rows": rows})
            starts = [{"loader": name, **start_of(name, Images(root, kind, sizes[-1]), workers)} for name in MAPPING]
            show(f"a second process: to its first batch of {sizes[-1]} x {sizes[-1]}, and memory at most", starts)
    write(out, {"hardware": where, "images": images, "photos": str(photos), "measured": report})


def store(root: Path, workers: int) -> None:
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import prepare

    for name, (kind, side) in STORED.items():
        prepare(read_folders(root / "folder"), root / name, Storage(kind, side), workers, skip_corrupt=False)


def measured(
    images: Images, workers: int, peers: str | None, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Goes through an epoch of each loader in turns. Returns: by loader, seconds of each round, and the processors'."""
    with ExitStack() as stack:
        epochs: dict[str, Epoch] = {}
        for name, make in makers(images, workers).items():
            try:
                epochs[name] = partial(timed, make())
            except (ImportError, UserError) as error:
                tell(f"{name}: left out: {error}")
        for name in PEERS if peers else ():
            try:
                epochs[name] = stack.enter_context(Peer(name, str(peers), images, workers)).epoch
            except UserError as error:
                tell(str(error))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
        with Progress("loaders", rounds + 1) as progress:
            for _ in range(rounds + 1):  # the first one warms up
                for name, epoch in epochs.items():
                    taken[name].append(epoch())
                progress.advance()
    wall, cpu = ({name: [one[place] for one in all_of[1:]] for name, all_of in taken.items()} for place in (0, 1))
    return wall, cpu


class Peer:
    """A loader of peers.py in a process of its own interpreter. Raises: UserError, naming it, for one that fails."""

    def __init__(self, name: str, python: str, images: Images, workers: int) -> None:
        folder, kind = images.root / "folder" / "train", images.kind
        numbers = (workers, images.side, BATCH, kind.height, kind.width)
        command = [python, str(Path(__file__).with_name("peers.py")), name, str(folder), *map(str, numbers)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.name, self.process = name, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True)
        if (first := self.line()) != "ready":
            raise UserError(f"{name}: left out: {first or 'it ended'}")

    def epoch(self) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        found = self.line().split()
        if len(found) != 2:
            raise UserError(f"{self.name}: expected seconds of an epoch, found {' '.join(found) or 'nothing'}")
        return float(found[0]), float(found[1])

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def timed(epoch: Callable[[], Iterable[Any]]) -> tuple[float, float]:
    """Goes through an epoch: seconds, and the processors' of this process and its children."""
    before, started = processors_seconds(), time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - started, processors_seconds() - before


def row_of(name: str, images: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]]) -> Measured:
    """Speeds of a loader, and the medians over the rounds of FFCV's over its own."""
    row: Measured = {"loader": name}
    for unit, taken in (("s", seconds), ("CPU s", cpu)):
        row[f"images/{unit}"] = images / median(taken[name])
        row[f"ffcv / it by {unit}"] = median([a / b for a, b in zip(taken[name], taken[FFCV], strict=True)])
    return row


def processors_seconds() -> float:
    """Seconds that this process, its children that have ended and those that live have computed."""
    times, ticks = os.times(), os.sysconf("SC_CLK_TCK")
    total = times.user + times.system + times.children_user + times.children_system
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks  # utime, stime: proc(5)
    return total


def makers(images: Images, workers: int) -> dict[str, Callable[[], Callable[[], Iterable[Any]]]]:
    """By loader, what constructs it and returns what begins an epoch."""
    root, side = images.root, images.side
    folder = root / "folder"
    return {
        FFCV: partial(ours, "ffcv", root / "jpeg", side, workers),
        AS_IS: partial(ours, "ffcv", root / "as-is", side, workers),
        KERNELS: partial(ours, "ffcv", root / "as-is", side, workers, decode="ffcv"),
        RAW: partial(ours, "ffcv", root / "raw", side, workers),
        FOLDER: partial(ours, "folder", folder, side, workers),
        TIMM: partial(timms, folder / "train", side, workers, color_jitter=0.0, interpolation="bilinear"),
        TIMM_DEFAULT: partial(timms, folder / "train", side, workers),
        TORCHVISION: partial(torchvisions, folder / "train", side, workers),
        STOCK: partial(stock, root / "as-is" / "train.beton", side, workers),
    }


def ours(kind: str, root: Path, side: int, workers: int, decode: str = "own") -> Callable[[], Iterable[Any]]:
    """Epochs of other crops each time, since a processor learns those that return."""
    reading = Reading(
        part=Part(BATCH, 1, 0, 1, 0),
        training_crop=RandomResizedCrop(SCALE, RATIO, 0.5),
        evaluation_crop=CentreCrop(0.875),
        workers=workers,
        timeout_s=60,
        pinned=False,
        decode=decode,
    )
    loader, numbers = LOADERS[kind](root, "train", reading), itertools.count()
    return lambda: loader.train_epoch(next(numbers), (side, side))


def timms(root: Path, side: int, workers: int, **augmentation: Any) -> Callable[[], Iterable[Any]]:
    from timm.data import create_dataset, create_loader

    return partial(
        iter,
        create_loader(
            create_dataset("", root=str(root)),
            input_size=(3, side, side),
            batch_size=BATCH,
            is_training=True,
            num_workers=workers,
            device=torch.device("cpu"),
            **augmentation,
        ),
    )


def torchvisions(root: Path, side: int, workers: int) -> Callable[[], Iterable[Any]]:
    """Whole images by torchvision.io, its transforms of tensors, and torch's workers."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(side, SCALE, RATIO, antialias=True)
    images = ImageFolder(str(root), v2.Compose([crop, v2.RandomHorizontalFlip()]), loader=decode_image)
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return partial(iter, loader)


def stock(path: Path, side: int, workers: int) -> Callable[[], Iterable[Any]]:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((side, side)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    loader = Loader(
        str(path), batch_size=BATCH, num_workers=workers, order=OrderOption.RANDOM, os_cache=True, pipelines=pipelines
    )
    return partial(iter, loader)


def start_of(name: str, images: Images, workers: int) -> Measured:
    """Seconds to a loader's first batch, and its memory, in a process that is not the first to make one."""
    code = "import sys; from en.benchmarks.loader import print_start; print_start(*sys.argv[1:])"
    command = [sys.executable, "-c", code, name, str(images.root), str(images.side), str(workers)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    return {"seconds": seconds, "MB": megabytes}


def print_start(name: str, root: str, side: str, workers: str) -> None:
    """Prints seconds to the first batch, and how many MB at most two epochs have added to this process."""
    make = makers(Images(Path(root), KINDS[0], int(side)), int(workers))[name]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)
    before, started = megabytes_of("VmRSS"), time.perf_counter()
    epoch = make()
    batches = iter(epoch())
    next(batches)
    seconds = time.perf_counter() - started
    for _ in itertools.chain(batches, epoch()):
        pass
    print(seconds, megabytes_of("VmHWM") - before)


def megabytes_of(field: str) -> float:
    """A field of /proc/self/status in MB; memory that maps files counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{field}:"))
