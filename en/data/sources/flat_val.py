"""ImageNet unpacked, its validation images in one folder: Kaggle's tree, and a folder with train/CLASS/ and val/."""

from collections.abc import Iterator
from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.folders import class_folders, files_below, folder_samples, is_hidden
from en.data.sources.source import SPLITS, Sample, Source, as_line, as_text
from en.data.sources.val_labels import Hints, labelled, warn_of_count
from en.data.sources.wordnet import IMAGENET_1K, WNID, are_wnids

KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")


def kaggle_root(path: Path) -> Path | None:
    """The folder that holds ILSVRC/, which is the given one or the one above it; None where there is none."""
    return next((root for root in (path, path.absolute().parent) if (root / KAGGLE / "train").is_dir()), None)


def is_kaggle(path: Path) -> bool:
    return (path / KAGGLE / "train").is_dir() or (path.name == "ILSVRC" and kaggle_root(path) is not None)


def read_kaggle(path: Path, hints: Hints) -> Source:
    """Reads ILSVRC/Data/CLS-LOC/{train/WNID/*,val/*}, and the classes of val from LOC_val_solution.csv beside ILSVRC/.

    Raises: UserError.
    """
    root = kaggle_root(path)
    assert root is not None
    return read_flat(root / KAGGLE, root, hints, "ILSVRC2012", "Kaggle's tree of ImageNet")


def in_folder(path: Path) -> list[Path]:
    return [each for each in path.iterdir() if not is_hidden(each)] if path.is_dir() else []


def is_folders(path: Path) -> bool:
    """Tells whether there are folders named by WordNet ids, for training and for evaluation."""
    return all(any(WNID.fullmatch(each.name) for each in in_folder(path / split)) for split in SPLITS)


def is_flat(path: Path) -> bool:
    """Tells whether there are folders named by WordNet ids for training and, for evaluation, files alone."""
    train, val = in_folder(path / "train"), in_folder(path / "val")
    is_labelled = bool(train) and are_wnids(each.name for each in train)
    return is_labelled and bool(val) and not any(each.is_dir() for each in val)


def read_flat_val(path: Path, hints: Hints) -> Source:
    """Reads train/WNID/* and val/*, with the classes of val from a list beside them. Raises: UserError."""
    return read_flat(path, path, hints, as_text(path.resolve().name), "class folders, and a flat folder for evaluation")


def read_flat(images: Path, lists: Path, hints: Hints, name: str, form: str) -> Source:
    folders = class_folders(images / "train")
    classes = sorted(folders)
    train = Compact(folder_samples(images / "train", folders, classes))
    val = Compact(flat_samples(images / "val", classes, lists, hints))
    if len(classes) == IMAGENET_1K:
        warn_of_count(images / "train", "train", len(train), len(classes))
        warn_of_count(images / "val", "val", len(val), len(classes))
    return Source(name, classes, {"train": train, "val": val}, form=form)


def flat_samples(folder: Path, classes: list[str], lists: Path, hints: Hints) -> Iterator[Sample]:
    files = {as_line(file.name): file for file in files_below(folder, ())}
    labels = labelled(list(files), classes, lists, hints)
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    for name in sorted(files, key=lambda name: (labels[name], name)):
        yield Sample(f"{labels[name]}/{name}", files[name], numbers[labels[name]])
