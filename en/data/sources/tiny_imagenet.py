"""Tiny-ImageNet-200, unpacked: its validation images lie in one folder, with a table of their classes."""

from collections.abc import Iterator
from pathlib import Path

from en.data.sources.classes import trimmed
from en.data.sources.compact import Compact
from en.data.sources.folders import class_folders
from en.data.sources.source import Sample, Source, as_line
from en.errors import UserError, shown, warn

TABLE = Path("val", "val_annotations.txt")
COUNTS = {"train": 100_000, "val": 10_000}
CLASSES = 200


def is_tiny_imagenet(path: Path) -> bool:
    return (path / TABLE).is_file()


def read_tiny_imagenet(path: Path) -> Source:
    """Reads train/WNID/images/*, val/images/* and val/val_annotations.txt: file, WordNet id and a box, between tabs.

    Raises: UserError.
    """
    folders = class_folders(path / "train")
    classes = sorted(folders)
    splits = {
        "train": Compact(train_samples(folders, classes)),
        "val": Compact(val_samples(path, classes)),
    }
    for split, samples in splits.items():
        if (len(samples), len(classes)) != (COUNTS[split], CLASSES):
            warn(
                f"{path / split}: {len(samples)} images of {len(classes)} classes: Tiny-ImageNet has {COUNTS[split]} "
                f"of {CLASSES}"
            )
    return Source("Tiny-ImageNet", classes, splits, form="Tiny-ImageNet as downloaded")


def train_samples(folders: dict[str, Path], classes: list[str]) -> Iterator[Sample]:
    for number, wnid in enumerate(classes):
        files = sorted((folders[wnid] / "images").glob("[!.]*"))
        if not files:
            raise UserError(f"{folders[wnid] / 'images'}: expected images, found none")
        yield from (Sample(as_line(f"{wnid}/{file.name}"), file, number) for file in files)


def val_samples(path: Path, classes: list[str]) -> Iterator[Sample]:
    rows = []
    for number, line in enumerate((path / TABLE).read_text(encoding="utf-8").splitlines(), 1):
        name, wnid, *_ = [*map(trimmed, line.split("\t")), "", ""]
        if wnid not in classes or not (path / "val" / "images" / name).is_file():
            raise UserError(
                f"{path / TABLE}:{number}: {shown(line)}: expected a file of val/images and a class of train"
            )
        rows.append((wnid, name))
    listed, there = {name for _, name in rows}, {file.name for file in (path / "val" / "images").glob("[!.]*")}
    if listed != there:
        raise UserError(f"{path / TABLE}: {len(listed)} files: expected the {len(there)} of val/images, each once")
    for wnid, name in sorted(rows):
        yield Sample(f"{wnid}/{name}", path / "val" / "images" / name, classes.index(wnid))
