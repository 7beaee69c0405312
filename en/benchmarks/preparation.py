"""Preparation from the layouts in which people hold ImageNet, beside that from class folders."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from en.benchmarks.photographs import KINDS, make_images
from en.benchmarks.timing import Measured, hardware, median, show, write
from en.data.sources import read_folders
from en.data.sources.ilsvrc2012 import TRAIN, VAL
from en.data.sources.val_labels import SYNSETS
from en.data.sources.wordnet import IMAGENET_1K, imagenet_classes
from en.errors import RunError
from en.progress import Progress

FOLDERS, TARS, PARQUET, WEBDATASET = "class folders", "tar of tars", "parquet, groups of 100", "webdataset's tars"
GROUP, SHARD = 100, 500  # rows, samples
SAMPLE_S = 0.1
MEMORY_PER_CLASS = (50, 300)
IMAGENET_TRAIN = 1_281_167


class Taken(NamedTuple):
    """Holds what a preparation took.

    Attributes:
        seconds: of the whole command.
        own: megabytes that its processes had at most at a time, each page once.
        mapped: the same with the pages of files that are mapped, of libraries above all, which the system may drop.
    """

    seconds: float
    own: float
    mapped: float


def benchmark_prepare(images: int, photos: Path | None, workers: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of whole commands, ratios to class folders, and peak memory, by layout.

    Args:
        images: for training.
        photos: a folder of JPEGs, of which mosaics are made; None: noise with the spectrum of photographs.
    """
    print(f"{hardware('cpu', workers)}; load {os.getloadavg()[0]:.1f}; {'noise' if photos is None else photos}")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_layouts(root, images, photos, workers)
        taken: dict[str, list[Taken]] = {name: [] for name in (FOLDERS, TARS, PARQUET, WEBDATASET)}
        with Progress("preparations", rounds) as progress:
            for _ in range(rounds):
                for name in taken:
                    taken[name].append(prepared(root / name, root / "out", workers))
                progress.advance()
        rows = rows_of(taken, images)
        show(f"{KINDS[1]}, {images} images, whole commands", rows)
        held_by = memory(root, workers)
    show("memory at most, tar of 1,000 tars of images of 8 x 8 pixels, MB; the last extrapolated", held_by)
    report = {"hardware": hardware("cpu", workers), "rows": rows, "seconds_and_megabytes": taken, "memory": held_by}
    write(out, report)


def memory(root: Path, workers: int) -> list[Measured]:
    """Prepares few and more images of 1,000 classes. Returns: their memory, and by its growth that of ImageNet."""
    rows: list[Measured] = []
    for per_class in MEMORY_PER_CLASS:
        place = root / f"{per_class} a class"
        write_small(place, per_class)
        taken = prepared(place, root / "out", workers)
        rows.append({"images": per_class * IMAGENET_1K, "its own": taken.own, "with mapped files": taken.mapped})
        shutil.rmtree(place)
    few, many = (float(row["images"]) for row in rows)
    last: Measured = {"images": IMAGENET_TRAIN}
    for kind in ("its own", "with mapped files"):
        low, high = (float(row[kind]) for row in rows)
        last[kind] = high + (high - low) / (many - few) * (IMAGENET_TRAIN - many)
    return [*rows, last]


def write_small(root: Path, per_class: int) -> None:
    """Writes ILSVRC2012's tars with small images, each of which differs from all others by a comment."""
    root.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "JPEG")
    head, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    wnids = imagenet_classes()
    with tarfile.open(root / TRAIN, "w") as outer:
        for wnid in wnids:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(per_class):
                    add(tar, f"{wnid}_{number}.JPEG", head + comment(f"{wnid} {number}") + rest)
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / VAL, "w") as tar:
        for number, wnid in enumerate(wnids):
            add(tar, f"ILSVRC2012_val_{number:08}.JPEG", head + comment(wnid) + rest)
    (root / SYNSETS).write_text("\n".join(wnids))


def comment(text: str) -> bytes:
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text.encode()


def rows_of(taken: dict[str, list[Taken]], images: int) -> list[Measured]:
    rows = []
    for name, rounds in taken.items():
        ratios = [base.seconds / one.seconds for one, base in zip(rounds, taken[FOLDERS], strict=True)]
        rows.append(
            {
                "layout": name,
                "images/s": images / median([one.seconds for one in rounds]),
                "of class folders": median(ratios),
                "its own memory at most, MB": max(one.own for one in rounds),
                "with mapped files": max(one.mapped for one in rounds),
            }
        )
    return rows


def make_layouts(root: Path, images: int, photos: Path | None, workers: int) -> None:
    """Writes the same images in each layout, under the WordNet ids of ImageNet's first classes."""
    folders = root / FOLDERS
    make_images(folders, KINDS[1], photos, images, workers)
    for split in ("train", "val"):
        for folder in sorted((folders / split).iterdir()):
            folder.rename(folder.with_name(imagenet_classes()[int(folder.name)]))
    source = read_folders(folders)
    files = {split: [sample.image for sample in source.splits[split]] for split in source.splits}
    for name in (TARS, PARQUET, WEBDATASET):
        (root / name).mkdir()
    write_tars(
        root / TARS, {split: [path for path in paths if isinstance(path, Path)] for split, paths in files.items()}
    )
    for split in source.splits:
        paths = [path for path in files[split] if isinstance(path, Path)]
        labels = [sample.target for sample in source.splits[split] if isinstance(sample.target, int)]
        write_parquet(root / PARQUET / f"{split}-00000-of-00001.parquet", paths, labels)
        write_webdataset(root / WEBDATASET, split, paths, labels)


def write_tars(root: Path, files: dict[str, list[Path]]) -> None:
    with tarfile.open(root / TRAIN, "w") as outer:
        for wnid in sorted({path.parent.name for path in files["train"]}):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for path in files["train"]:
                    if path.parent.name == wnid:
                        add(tar, path.name, path.read_bytes())
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / VAL, "w") as tar:
        for path in files["val"]:
            add(tar, path.name, path.read_bytes())
    lines = [path.parent.name for path in sorted(files["val"], key=lambda path: path.name)]
    (root / SYNSETS).write_text("\n".join(lines))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, files: list[Path], labels: list[int]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = [{"bytes": file.read_bytes(), "path": f"{file.stem}_{file.parent.name}.JPEG"} for file in files]
    write_table(pa.table({"image": rows, "label": labels}), path, row_group_size=GROUP)


def write_webdataset(root: Path, split: str, files: list[Path], labels: list[int]) -> None:
    for shard in range(-(-len(files) // SHARD)):
        with tarfile.open(root / f"{split}-{shard:05}.tar", "w") as tar:
            for number in range(shard * SHARD, min((shard + 1) * SHARD, len(files))):
                key = f"{files[number].stem}_{files[number].parent.name}"
                add(tar, f"{key}.jpg", files[number].read_bytes())
                add(tar, f"{key}.cls", str(labels[number]).encode())


def prepared(source: Path, out: Path, workers: int) -> Taken:
    """Runs en-prepare."""
    started, samples = time.perf_counter(), [(0, 0)]
    command = [sys.executable, "-m", "en.commands.prepare", str(source), str(out), "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            pages = [held(each) for each in tree(process.pid)]
            samples.append((sum(each["Pss_Anon"] for each in pages), sum(each["Pss"] for each in pages)))
            time.sleep(SAMPLE_S)
        seconds, said = time.perf_counter() - started, process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise RunError(f"en-prepare {source}: {said}")
    shutil.rmtree(out)
    # Of two samples running the lesser: while processes start or end, pages that they share may be counted twice.
    own, mapped = (max(map(min, kind, kind[1:])) for kind in zip(*samples, strict=True))
    return Taken(seconds, 1.024e-3 * own, 1.024e-3 * mapped)


def tree(process: int) -> Iterator[int]:
    """A process and those that it started."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue  # it has ended
        for child in children:
            yield from tree(int(child))


def held(process: int) -> Counter[str]:
    """The kinds of pages that a process has, KiB: those of its own, and its part of those that it shares."""
    try:
        _, *lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return Counter()  # it has ended
    return Counter({line.partition(":")[0]: int(line.split()[1]) for line in lines})
