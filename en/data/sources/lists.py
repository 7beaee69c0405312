"""A list file: `train|val|test path class` on each line."""

import re
from array import array
from pathlib import Path

from en.data.sources.classes import trimmed, warn_of_alike
from en.data.sources.compact import Compact
from en.data.sources.source import ALL_SPLITS, Sample, Source, as_text
from en.errors import UserError, shown
from en.text_file import MOST_OF_LIST, read_text


def read_list(path: Path) -> Source:
    """Reads a list file: `train|val|test path class` on each line, by tabs or spaces; # starts a comment line.

    Classes are those of train, or of all lines where none is for train; samples' names are the paths as written. Blanks
    of any kind around a field are none of it. Warns of classes whose names look alike.

    Raises: UserError, also for a class of several words on a line without tabs.
    """
    found = {split: Compact() for split in ALL_SPLITS}
    met: dict[str, int] = {}  # classes by the order in which they are met
    lines = read_text(path, "a text file, each line `train|val|test path class`", MOST_OF_LIST).splitlines()
    for number, line in enumerate(map(trimmed, lines), 1):
        if not line or line.startswith("#"):
            continue
        parts = [*map(trimmed, split_line(line))]
        if len(parts) != 3 or parts[0] not in ALL_SPLITS or not all(parts):
            raise UserError(f"{path}:{number}: {line!r}: expected `train|val|test path class`")
        refuse_cut_class(f"{path}:{number}", path.parent, parts[1])
        split, image, name = parts
        found[split].append(Sample(as_text(image), path.parent / image, met.setdefault(name, len(met))))
    splits = {split: samples for split, samples in found.items() if samples}
    if not splits:
        raise UserError(f"{path}: expected lines `train|val|test path class`, found none")
    classes = number_anew(path, splits, met)
    warn_of_alike(path, classes)
    return Source(as_text(path.stem), classes, splits)


def number_anew(path: Path, splits: dict[str, Compact], met: dict[str, int]) -> list[str]:
    """Numbers classes, which have the numbers `met`, in the order of their names. Returns: the names in that order.

    Raises: UserError for a class that train does not have.
    """
    names = [*met]
    classes = sorted({names[number] for number in splits["train"].targets} if "train" in splits else names)
    numbers = {met[name]: number for number, name in enumerate(classes)}
    for samples in splits.values():
        for number, target in enumerate(samples.targets):
            if target not in numbers:
                where = f"{path}: class {names[target]!r} of {samples[number].name}"
                raise UserError(f"{where}: expected one of the classes of train")
        samples.targets = array("q", map(numbers.__getitem__, samples.targets))
    return classes


def split_line(line: str) -> list[str]:
    """The fields of a line. Without tabs, the path is everything between the first and the last word."""
    if "\t" in line:
        return line.split("\t")
    first, *rest = line.split(maxsplit=1)
    return [first, *(rest[0].rsplit(maxsplit=1) if rest else [])]


def refuse_cut_class(where: str, folder: Path, name: str) -> None:
    """Raises UserError for a path that is a file only without its last words, which then are those of a class."""
    words = name.split()
    if len(words) < 2 or (folder / name).exists():
        return
    for blank in re.finditer(r"\s+", name):
        if (folder / name[: blank.start()]).is_file():
            raise UserError(
                f"{where}: no file {shown(name)}, but {shown(name[: blank.start()])} is one: expected tabs between "
                "split, path and class where the class has several words"
            )
