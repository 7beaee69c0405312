"""Finds the class of each image of ImageNet's validation set, by the lists that come with it or are passed around."""

import csv
import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from en.data.sources.wordnet import WNID, refuse_unknown
from en.errors import UserError, listed, naming_missing_packages, shown, warn
from en.text_file import MOST_OF_LIST, read_text

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", f"{DEVKIT}/data/meta.mat"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # TF-Slim's: a WordNet id for each image, in their names' order
LISTS = (SOLUTION, SYNSETS, "val.txt")
BYTE_ORDER_MARK = "\ufeff"  # which spreadsheets write
ORDERS = ("sorted", "devkit")


@dataclass(frozen=True)
class Hints:
    """Says what a set's files leave open.

    Attributes:
        val_list: the list of the validation images' classes; None: the first that is found beside them.
        labels: what class a number stands for: "sorted", its position among the sorted WordNet ids, from 0, or
            "devkit", ILSVRC2012_ID, from 1; None: refused where a list does not say.
        form: which of several forms that a folder holds is read, by its name in the registry.
    """

    val_list: Path | None = None
    labels: str | None = None
    form: str | None = None


NO_HINTS = Hints()


def labelled(names: Sequence[str], classes: Sequence[str], folder: Path, hints: Hints) -> dict[str, str]:
    """Finds the WordNet id of each validation image.

    Args:
        names: of the image files.
        classes: those of training, sorted.
        folder: where lists and the devkit, as an archive or unpacked, are looked for.
    Raises: UserError, also for a list of other images or classes.
    """
    kit = next((path for path in devkits(folder) if path.exists()), None)
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    path = hints.val_list or (lists[0] if lists and not kit else None)
    if path is None and kit is None:
        wanted = ", ".join([*LISTS, f"{DEVKIT}.tar.gz"])
        raise UserError(
            f"{folder}: {len(names)} validation images and no list of their classes: expected {wanted}, or --val-list"
        )
    if path is None:
        assert kit is not None
        found = by_devkit(kit, names)
        if lists:
            compare(by_list(lists[0], names, classes, kit, hints), found, f"{lists[0]} and {kit}")
    else:
        found = by_list(path, names, classes, kit, hints)
    where = path or kit
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{where}: {len(missing)} of {len(names)} images are not in it: {listed(missing, 3)}")
    known = set(classes)
    if other := sorted({found[name] for name in names} - known):
        raise UserError(f"{where}: {len(other)} classes that training does not have: {listed(other, 3)}")
    return found


def devkits(folder: Path) -> list[Path]:
    return [folder / DEVKIT, folder / f"{DEVKIT}.tar.gz", folder / f"{DEVKIT}.tar"]


def compare(one: dict[str, str], other: dict[str, str], where: str) -> None:
    if differing := [name for name in one if one[name] != other.get(name)]:
        raise UserError(f"{where}: {len(differing)} images have other classes in each: {listed(differing, 3)}")


def by_devkit(kit: Path, names: Sequence[str]) -> dict[str, str]:
    """Reads the ground truth, in the order of the *sorted names*, and its ids by meta.mat."""
    truth = [line.strip() for line in content_of(kit, TRUTH).decode().splitlines() if line.strip()]
    if len(truth) != len(names):
        raise UserError(f"{kit}: {TRUTH}: {len(truth)} lines: expected {len(names)}, one for each validation image")
    return dict(zip(sorted(names), in_devkits_order(kit, truth), strict=True))


def in_devkits_order(kit: Path, numbers: Sequence[str]) -> list[str]:
    wnids = meta_wnids(kit)
    if other := [number for number in numbers if not number.isdecimal() or int(number) not in wnids]:
        raise UserError(f"{kit}: {shown(other[0])}: expected an ILSVRC2012_ID from 1 to {len(wnids)}")
    return [wnids[int(number)] for number in numbers]


def meta_wnids(kit: Path) -> dict[int, str]:
    """Reads which WordNet id each ILSVRC2012_ID is: of meta.mat's synsets, those without children.

    Raises: UserError also where timm's list of ImageNet's classes has others.
    """
    with naming_missing_packages("imagenet"):
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    try:
        rows = loadmat(io.BytesIO(content_of(kit, META)), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except (MatReadError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{kit}: {META}: expected the table of ILSVRC2012's synsets: {error}") from error
    refuse_unknown(kit, sorted(wnids.values()))
    return wnids


def content_of(kit: Path, name: str) -> bytes:
    """Reads a file of the devkit, unpacked or not."""
    try:
        if kit.is_dir():
            return (kit.parent / name).read_bytes()
        with tarfile.open(kit) as tar:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()
    except (OSError, tarfile.TarError, KeyError, EOFError, AssertionError) as error:
        raise UserError(f"{kit}: expected {name} in it: {error}") from error


def by_list(path: Path, names: Sequence[str], classes: Sequence[str], kit: Path | None, hints: Hints) -> dict[str, str]:
    """Reads a list: Kaggle's table; lines `name class`; or a class on each line, in the order of the sorted names.

    A class is a WordNet id, or a number, of which --labels says what it counts.
    """
    text = read_text(path, "a list of the validation images' classes", MOST_OF_LIST).removeprefix(BYTE_ORDER_MARK)
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
            raise UserError(f"{path}: expected a table with the columns ImageId and PredictionString")
        pairs = [(f"{row['ImageId']}.JPEG", (row["PredictionString"] or "").split(maxsplit=1)[:1]) for row in rows]
        keys, kinds = [name for name, _ in pairs], [wnid[0] if wnid else "" for _, wnid in pairs]
    else:
        words = [line.split() for line in text.splitlines() if line.strip()]
        widths = {len(each) for each in words}
        if widths == {1} and len(words) != len(names):
            raise UserError(f"{path}: {len(words)} lines: expected {len(names)}, one for each validation image")
        if widths not in ({1}, {2}):
            raise UserError(f"{path}: expected lines `name class`, or a class alone on each")
        keys = sorted(names) if widths == {1} else [Path(each[0]).name for each in words]
        kinds = [each[-1] for each in words]
    return dict(zip(keys, as_wnids(path, kinds, classes, kit, hints), strict=True))


def as_wnids(path: Path, kinds: Sequence[str], classes: Sequence[str], kit: Path | None, hints: Hints) -> list[str]:
    if all(WNID.fullmatch(kind) for kind in kinds):
        return list(kinds)
    if other := [kind for kind in kinds if not re.fullmatch("[0-9]{1,4}", kind)]:
        raise UserError(f"{path}: {shown(other[0])}: expected a WordNet id such as n01440764, or a number")
    if hints.labels is None:
        raise UserError(
            f"{path}: classes as numbers, {listed(list(kinds), 3)}: expected --labels sorted (positions among the "
            "sorted WordNet ids, from 0) or devkit (ILSVRC2012_ID, from 1): the two orders differ"
        )
    if hints.labels == "devkit":
        if kit is None:
            raise UserError(f"{path}: --labels devkit: expected {DEVKIT}.tar.gz beside it, which says what its ids are")
        return in_devkits_order(kit, kinds)
    if other := [kind for kind in kinds if int(kind) >= len(classes)]:
        raise UserError(f"{path}: {other[0]}: expected a number from 0 to {len(classes) - 1}")
    return [classes[int(kind)] for kind in kinds]


def warn_of_count(where: Path, split: str, images: int, classes: int) -> None:
    """Warns of a number of images that is not ILSVRC2012's."""
    expected = {"train": (1_281_167, 1000), "val": (50_000, 1000)}[split]
    if (images, classes) != expected:
        warn(
            f"{where}: {images} images of {classes} classes: ILSVRC2012 has {expected[0]} of {expected[1]} for {split}"
        )
