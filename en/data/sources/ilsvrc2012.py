"""ILSVRC2012 as downloaded: a tar of 1,000 tars, a tar, and the devkit's archive.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

from collections.abc import Iterator
from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.source import Sample, Source
from en.data.sources.tars import Member, Span, members
from en.data.sources.val_labels import Hints, labelled, warn_of_count
from en.data.sources.wordnet import WNID, refuse_unknown
from en.errors import UserError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def is_ilsvrc2012(path: Path) -> bool:
    return (path / TRAIN).is_file()


def read_ilsvrc2012(path: Path, hints: Hints) -> Source:
    """Reads the archives where they lie: the samples are those of class folders, in the same order.

    Raises: UserError.
    """
    classes = inner_tars(path / TRAIN)
    if not (path / VAL).is_file():
        raise UserError(f"{path / VAL}: no such file: expected it beside {TRAIN}")
    train = Compact(train_samples(path / TRAIN, classes))
    val = Compact(val_samples(path / VAL, sorted(classes), path, hints))
    warn_of_count(path / TRAIN, "train", len(train), len(classes))
    warn_of_count(path / VAL, "val", len(val), len(classes))
    form = f"ILSVRC2012 as downloaded, a tar of {len(classes)} tars and one of {len(val)} images"
    return Source("ILSVRC2012", sorted(classes), {"train": train, "val": val}, form=form)


def inner_tars(archive: Path) -> dict[str, Member]:
    """Lists the classes' tars by WordNet id, which is their name."""
    found = {}
    for member in members(archive):
        wnid = Path(member.name).name.removesuffix(".tar")
        if not WNID.fullmatch(wnid) or wnid in found:
            raise UserError(f"{archive}: {member.name}: expected one tar for each class, such as n01440764.tar")
        found[wnid] = member
    if not found:
        raise UserError(f"{archive}: expected one tar for each class, found none")
    refuse_unknown(archive, sorted(found))
    return found


def train_samples(archive: Path, classes: dict[str, Member]) -> Iterator[Sample]:
    for number, (wnid, tar) in enumerate(sorted(classes.items())):
        images = sorted(members(archive, tar))
        if not images:
            raise UserError(f"{archive}: {tar.name}: expected images, found none")
        for image in images:
            yield Sample(f"{wnid}/{Path(image.name).name}", Span(archive, image.start, image.size), number)


def val_samples(archive: Path, classes: list[str], folder: Path, hints: Hints) -> Iterator[Sample]:
    images = [(Path(image.name).name, image) for image in members(archive)]
    labels = labelled([name for name, _ in images], classes, folder, hints)
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    for name, image in sorted(images, key=lambda item: (labels[item[0]], *item)):
        yield Sample(f"{labels[name]}/{name}", Span(archive, image.start, image.size), numbers[labels[name]])
