"""WordNet ids, by which ImageNet's classes are known: names are no keys, since two classes are called crane."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from en.data.sources.classes import trimmed
from en.data.sources.compact import Compact
from en.data.sources.source import Sample, Source
from en.errors import UserError, listed, shown

WNID = re.compile(r"n[0-9]{8}")
LAST_WNID = re.compile(r"_(n[0-9]{8})(?=\.[^.]*$|$)")
IMAGENET_1K = 1000


def are_wnids(names: Iterable[str]) -> bool:
    return all(WNID.fullmatch(name) for name in names)


def imagenet_1k() -> list[str] | None:
    """The WordNet ids of ImageNet's 1,000 classes, sorted, as timm lists them; None where timm is not installed."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    return sorted(ImageNetInfo().label_names())


def refuse_unknown(where: Path, wnids: Sequence[str]) -> None:
    """Compares the WordNet ids of what is to be ImageNet-1k, or a part of it, with timm's list, if that is there.

    Raises: UserError that names those which are not in the list, or of 1,000 those which are not here.
    """
    known = set(imagenet_1k() or wnids)
    unknown = sorted(set(wnids) - known)
    missing = sorted(known - set(wnids)) if len(wnids) == IMAGENET_1K else []
    if unknown or missing:
        said = f"has {listed(unknown, 3)}" if unknown else f"lacks {listed(missing, 3)}"
        raise UserError(f"{where}: {said}: expected the WordNet ids of ImageNet-1k, as timm lists them")


def read_classes(path: Path) -> list[str]:
    """Reads a list of classes: a WordNet id first on each line; # starts a comment line. Raises: UserError."""
    try:
        lines = [*map(trimmed, path.read_text(encoding="utf-8").splitlines())]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a text file with a WordNet id on each line: {error}") from error
    wnids = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        wnid = line.split()[0]
        if not WNID.fullmatch(wnid) or wnid in wnids:
            raise UserError(f"{path}:{number}: {shown(line)}: expected another WordNet id, such as n01440764")
        wnids.append(wnid)
    if not wnids:
        raise UserError(f"{path}: expected a WordNet id on each line, found none")
    return wnids


def only(source: Source, path: Path) -> Source:
    """The part of a source whose classes a list names, numbered in the order of their WordNet ids.

    Raises: UserError for a class that the source does not have.
    """
    wnids = sorted(read_classes(path))
    if unknown := [wnid for wnid in wnids if wnid not in source.classes]:
        what = "" if are_wnids(source.classes) else ", whose classes have other names"
        raise UserError(f"{path}: {listed(unknown, 3)}: expected classes of {source.name}{what}")
    numbers = {source.classes.index(wnid): number for number, wnid in enumerate(wnids)}
    splits = {split: Compact(renumbered(samples, numbers)) for split, samples in source.splits.items()}
    palette = [source.palette[source.classes.index(wnid)] for wnid in wnids] if source.palette else []
    return Source(f"{source.name}, {path.stem}", wnids, splits, source.target, palette, source.form)


def renumbered(samples: Iterable[Sample], numbers: Mapping[int, int]) -> Iterator[Sample]:
    """Yields the samples of those classes that have a new number, with it."""
    for sample in samples:
        assert isinstance(sample.target, int)
        if sample.target in numbers:
            yield replace(sample, target=numbers[sample.target])


def in_order(wnids: Sequence[str]) -> list[int]:
    """The number that each class has among them all, in the order of their WordNet ids."""
    places = {wnid: number for number, wnid in enumerate(sorted(wnids))}
    return [places[wnid] for wnid in wnids]
