"""WordNet ids, by which ImageNet and its relatives know classes, and sets that are folders of them alone.

Names are no keys: two classes are called crane.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from en.data.sources.classes import trimmed
from en.data.sources.compact import Compact
from en.data.sources.folders import folder_samples, is_hidden
from en.data.sources.source import TEST, Sample, Source, as_text
from en.errors import UserError, listed, shown, warn
from en.text_file import MOST_OF_LIST, read_text

WNID = re.compile(r"n[0-9]{8}")
LAST_WNID = re.compile(r"_(n[0-9]{8})(?=\.[^.]*$|$)")
IMAGENET_1K = 1000
TABLE = Path(__file__).with_name("imagenet_1k.txt")
TITLES = {  # by the folder that their archives make: name and number of classes
    "imagenet-a": ("ImageNet-A", 200),
    "imagenet-r": ("ImageNet-R", 200),
    "sketch": ("ImageNet-Sketch", 1000),
    "imagenet-sketch": ("ImageNet-Sketch", 1000),
}


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC2012's 1,000 classes in the order of their usual numbers, which is the sorted one."""
    return tuple(line for line in TABLE.read_text(encoding="ascii").splitlines() if line[0] != "#")


def are_wnids(names: Iterable[str]) -> bool:
    return all(WNID.fullmatch(name) for name in names)


def refuse_unknown(where: Path, wnids: Sequence[str]) -> None:
    """Compares the WordNet ids of what is to be ImageNet-1k, or a part of it, with its list.

    Raises: UserError that names those which are not in the list, or of 1,000 those which are not here.
    """
    known = set(imagenet_classes())
    unknown = sorted(set(wnids) - known)
    missing = sorted(known - set(wnids)) if len(wnids) == IMAGENET_1K else []
    if unknown or missing:
        said = f"has {listed(unknown, 3)}" if unknown else f"lacks {listed(missing, 3)}"
        raise UserError(f"{where}: {said}: expected the WordNet ids of ImageNet-1k")


def wordnet_folders(root: Path) -> dict[str, Path]:
    """The folders in a folder, by name, if WordNet ids name all of them; else none. Files beside them do not count."""
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path)}
    return found if are_wnids(found) else {}


def is_wordnet(root: Path) -> bool:
    return root.is_dir() and bool(wordnet_folders(root))


def read_wordnet(root: Path) -> Source:
    """Reads root/WNID/**, one split for testing: ImageNet-A and -R of 200 classes each, ImageNet-Sketch of 1,000.

    Hendrycks et al., "Natural Adversarial Examples", CVPR 2021, and "The Many Faces of Robustness", ICCV 2021; Wang et
    al., "Learning Robust Global Representations by Penalizing Local Predictive Power", NeurIPS 2019. Warns of one that
    has not all of its classes.

    Raises: UserError.
    """
    folders = wordnet_folders(root)
    name, expected = TITLES.get(root.resolve().name.lower(), (as_text(root.resolve().name), len(folders)))
    if len(folders) != expected:
        warn(f"{root}: {len(folders)} classes, where {name} has {expected}")
    samples = list(folder_samples(root, folders, list(folders)))
    if not samples:
        raise UserError(f"{root}: expected image files in its class folders, found none")
    return Source(name, list(folders), {TEST: samples})


def read_classes(path: Path) -> list[str]:
    """Reads a list of classes: a WordNet id first on each line; # starts a comment line. Raises: UserError."""
    text = read_text(path, "a text file with a WordNet id on each line", MOST_OF_LIST)
    lines = [*map(trimmed, text.splitlines())]
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
    return replace(source, name=f"{source.name}, {path.stem}", classes=wnids, splits=splits, palette=palette)


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
