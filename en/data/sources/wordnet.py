"""WordNet ids, by which ImageNet and its relatives name classes, and sets that are folders of them alone."""

import re
from functools import cache
from pathlib import Path

from en.data.sources.folders import folder_samples, is_hidden
from en.data.sources.source import TEST, Source, as_text
from en.errors import UserError, warn

WNID = re.compile(r"n[0-9]{8}")
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


def wordnet_folders(root: Path) -> dict[str, Path]:
    """The folders in a folder, by name, if WordNet ids name all of them; else none. Files beside them do not count."""
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path)}
    return found if all(map(WNID.fullmatch, found)) else {}


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
