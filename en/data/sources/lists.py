"""A list file: `train|val|test path class` on each line."""

import re
from pathlib import Path

from en.data.sources.classes import trimmed, warn_of_alike
from en.data.sources.source import ALL_SPLITS, Sample, Source, as_text
from en.errors import UserError, shown
from en.text_file import MOST_OF_LIST, read_text


def read_list(path: Path) -> Source:
    """Reads a list file: `train|val|test path class` on each line, by tabs or spaces; # starts a comment line.

    Classes are those of train, or of all lines where none is for train; samples' names are the paths as written. Blanks
    of any kind around a field are none of it. Warns of classes whose names look alike.

    Raises: UserError, also for a class of several words on a line without tabs, and for a path twice in a split.
    """
    rows: list[tuple[str, str, str]] = []
    seen: set[tuple[str, str]] = set()
    lines = read_text(path, "a text file, each line `train|val|test path class`", MOST_OF_LIST).splitlines()
    for number, line in enumerate(map(trimmed, lines), 1):
        if not line or line.startswith("#"):
            continue
        parts = [*map(trimmed, split_line(line))]
        if len(parts) != 3 or parts[0] not in ALL_SPLITS or not all(parts):
            raise UserError(f"{path}:{number}: {line!r}: expected `train|val|test path class`")
        refuse_cut_class(f"{path}:{number}", path.parent, parts[1])
        if (parts[0], parts[1]) in seen:
            raise UserError(f"{path}:{number}: {shown(parts[1])}: twice in {parts[0]}: expected each image once")
        seen.add((parts[0], parts[1]))
        rows.append((parts[0], parts[1], parts[2]))
    if not rows:
        raise UserError(f"{path}: expected lines `train|val|test path class`, found none")
    trained = {name for split, _, name in rows if split == "train"}
    classes = sorted(trained or {name for _, _, name in rows})
    for _, image, name in rows:
        if trained and name not in trained:
            raise UserError(f"{path}: class {name!r} of {image}: expected one of the classes of train")
    warn_of_alike(path, classes)
    target = {name: index for index, name in enumerate(classes)}
    splits: dict[str, list[Sample]] = {split: [] for split in ALL_SPLITS if any(row[0] == split for row in rows)}
    for split, image, name in rows:
        splits[split].append(Sample(as_text(image), path.parent / image, target[name]))
    return Source(as_text(path.stem), classes, splits)


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
