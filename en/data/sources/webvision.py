"""WebVision 1.0 by its own lists. In class folders, files of one name from several queries would replace each other.

Li et al., "WebVision Database: Visual Learning and Understanding from Web Data", 2017 (arXiv 1708.02862).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from en.data.sources.compact import Compact
from en.data.sources.source import Sample, Source, as_text, is_below
from en.data.sources.wordnet import WNID
from en.errors import UserError, shown
from en.text_file import MOST_OF_LIST, read_text

INFO, SYNSETS, VAL_LIST = "info", "synsets.txt", "val_filelist.txt"
VAL_IMAGES = ("val_images_256", "val_images")
ENGINES = {"google": "Google", "flickr": "Flickr"}
PARTS = {"google": ("google",), "flickr": ("flickr",), "both": ("google", "flickr"), "mini": ("google",)}
MINI = 50  # classes, the first ones
CLASSES = 1000


def is_webvision(root: Path) -> bool:
    return (root / INFO / SYNSETS).is_file() and (root / INFO / VAL_LIST).is_file()


def read_webvision(root: Path, part: str | None = None) -> Source:
    """Reads what info/train_filelist_{google,flickr}.txt and info/val_filelist.txt name; samples by their listed paths.

    Classes are the WordNet ids of info/synsets.txt, by their lines, which the lists number from 0. A folder without
    images for training, or without val_images_256, gives a set of the other split.

    Args:
        part: google, flickr, both, or mini, Google's images of the first 50 classes; None: of whose images there are.
    Raises: UserError.
    """
    classes = read_synsets(root / INFO / SYNSETS)
    classes = classes[:MINI] if part == "mini" else classes
    engines = PARTS[part] if part else tuple(name for name in ENGINES if (root / name).is_dir())
    for engine in engines:
        if not (root / engine).is_dir():
            raise UserError(f"{root / engine}: no such folder: expected WebVision's images of {ENGINES[engine]}")
    known = None if part == "mini" else len(classes)
    splits: dict[str, Compact] = {}
    if engines:
        lists = [root / INFO / f"train_filelist_{engine}.txt" for engine in engines]
        splits["train"] = Compact(sample for path in lists for sample in listed_samples(path, root, classes, known))
    if images := next((root / name for name in VAL_IMAGES if (root / name).is_dir()), None):
        splits["val"] = Compact(listed_samples(root / INFO / VAL_LIST, images, classes, known))
    if not splits or not all(splits.values()):
        raise UserError(f"{root}: expected images in google/, flickr/ or {VAL_IMAGES[0]}/ that its lists name")
    return Source(title(part, engines), classes, splits)


def title(part: str | None, engines: Sequence[str]) -> str:
    whose = " and ".join(ENGINES[engine] for engine in engines)
    return "mini-WebVision" if part == "mini" else f"WebVision 1.0{f', {whose}' if whose else ''}"


def read_synsets(path: Path) -> list[str]:
    """Reads the classes: a WordNet id on each line, and its words. Raises: UserError, also for version 2.0."""
    ids = [line.split()[0] for line in read_lines(path)]
    if len(ids) > CLASSES:
        raise UserError(f"{path}: {len(ids)} classes: expected WebVision 1.0's {CLASSES}; 2.0 numbers them otherwise")
    if not ids or len(set(ids)) < len(ids) or not all(map(WNID.fullmatch, ids)):
        raise UserError(f"{path}: expected a WordNet id on each line, each once")
    return ids


def listed_samples(path: Path, folder: Path, classes: Sequence[str], known: int | None) -> Iterator[Sample]:
    """The samples of a list, in its order.

    Args:
        folder: of the paths.
        known: how many labels there are; None: those of other classes are left out.
    Raises: UserError, also for a path that is listed twice or leads out of the folder.
    """
    seen: set[str] = set()
    for number, line in enumerate(read_lines(path), 1):
        name, _, label = line.rpartition(" ")
        if not name or not re.fullmatch("[0-9]{1,9}", label) or (known is not None and int(label) >= known):
            labels = f"0 to {known - 1}" if known else "a number"
            raise UserError(f"{path}:{number}: {shown(line)}: expected `path label`, the label {labels}")
        if not is_below(name) or name in seen:
            found = "listed twice" if name in seen else "no plain path"
            raise UserError(f"{path}:{number}: {shown(name)}: {found}: expected each image once, as FOLDER/NAME")
        seen.add(name)
        if int(label) < len(classes):
            yield Sample(as_text(name), folder / name, int(label))


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a list that hold something, one at a time. Raises, when called: UserError."""
    text = read_text(path, "one of WebVision's lists", MOST_OF_LIST)
    lines = (match[0] for match in re.finditer(r"[^\n]+", text.replace("\r\n", "\n")))
    return (line for line in lines if line.strip())
