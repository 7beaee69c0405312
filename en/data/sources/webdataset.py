"""Sets as webdataset's tars, .jpg and .cls side by side, as timm/imagenet-1k-wds has them."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.labels import Labels, by_wnid
from en.data.sources.shards import all_shards, shards
from en.data.sources.source import SPLITS, Sample, Source, as_text
from en.data.sources.tars import Member, Span, members
from en.data.sources.val_labels import Hints
from en.errors import UserError, shown

SUFFIX = ".tar"
IMAGES = ("jpg", "jpeg", "png", "webp")


def is_webdataset(path: Path) -> bool:
    """Tells whether there are shards for training; WebVision's archives, beside its unpacked set, have none."""
    return any(not file.name.startswith("ILSVRC2012_img_") for file in shards(path, SUFFIX)["train"])


def read_webdataset(path: Path, hints: Hints) -> Source:
    """Reads the tars in the order of their numbers, and the samples in that of each tar.

    Raises: UserError for a sample without its image or its class.
    """
    labels, files = Labels(path), all_shards(path, SUFFIX)
    splits = {
        split: Compact(sample for file in files[split] for sample in samples_of(file, labels)) for split in SPLITS
    }
    classes, splits = by_wnid(splits, labels.classes([], hints))
    form = f"webdataset's tars, {len(files['train'])} + {len(files['val'])}"
    return Source(as_text(path.resolve().name), classes, splits, form=form)


def key_of(member: Member) -> str:
    """Returns what the members of one sample have in common: the path up to its name's first dot."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def samples_of(archive: Path, labels: Labels) -> Iterator[Sample]:
    for key, group in groupby(members(archive), key_of):
        found = [*group]
        parts = {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in found}
        if len(parts) < len(found):
            raise UserError(f"{archive}: {key}: two members of one kind: expected one sample of each name")
        image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
        if image is None or "cls" not in parts:
            raise UserError(f"{archive}: {key}: {', '.join(parts)}: expected .jpg and .cls, one after the other")
        label = text_of(archive, parts["cls"]).strip()
        if not label.isdecimal():
            raise UserError(f"{archive}: {parts['cls'].name}: {shown(label)}: expected a class number")
        file = original_name(text_of(archive, parts["json"])) if "json" in parts else ""
        name = labels.name(int(label), file or Path(image.name).name, f"{archive.stem}/{Path(image.name).name}")
        yield Sample(name, Span(archive, image.start, image.size), int(label))


def text_of(archive: Path, member: Member) -> str:
    return Span(archive, member.start, member.size).read().decode(errors="backslashreplace")


def original_name(content: str) -> str:
    """The file's name that a sample's JSON keeps; empty for none."""
    try:
        name = json.loads(content).get("filename")
    except (ValueError, AttributeError):
        return ""
    return name if isinstance(name, str) else ""
