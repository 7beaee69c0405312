"""Images and masks in pairs: a pair of folders with a table of classes, and what the forms of published sets share."""

import re
from pathlib import Path

from en.data.sources.classes import trimmed, warn_of_alike
from en.data.sources.folders import files_below
from en.data.sources.source import SPLITS, Sample, Source, as_text, name_of, naming_unreadable
from en.data.targets import ClassMap
from en.data.views import IGNORE
from en.errors import UserError, shown
from en.text_file import MOST_OF_LIST, read_text

TABLE = "classes.txt"
IGNORED = "ignore"  # the name, in a table, of values that do not count
LARGEST = 65_535  # values have 16 bits at most


def is_pairs(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "masks").is_dir() and not (root / "train").exists()


def read_pairs(root: Path) -> Source:
    """Reads root/images/{train,val}/** and root/masks/{train,val}/**, pairs by path but for the suffix, and TABLE.

    Raises: UserError for files without a partner, in either folder, and for a table that is not one.
    """
    names, target = read_table(root / TABLE)
    splits = {split: paired(root / "images" / split, root / "masks" / split) for split in SPLITS}
    return Source(as_text(root.resolve().name), names, splits, target)


def read_table(path: Path) -> tuple[list[str], ClassMap]:
    """Reads a table of classes: on each line a value of the masks and a name; # starts a comment line.

    Classes are numbered in the order of their lines. The name `ignore` is for values that do not count.

    Raises: UserError.
    """
    names: list[str] = []
    values: dict[int, int] = {}
    lines = read_text(path, "a text file, each line `value name` of a class", MOST_OF_LIST).splitlines()
    for number, line in enumerate(map(trimmed, lines), 1):
        if not line or line.startswith("#"):
            continue
        parts = re.fullmatch(r"([0-9]{1,5})\s+(.+)", line)
        if parts is None or int(parts[1]) > LARGEST:
            raise UserError(f"{path}:{number}: {shown(line)}: expected `value name`, a value from 0 to {LARGEST}")
        value, name = int(parts[1]), trimmed(parts[2])
        if value in values or name in names:
            raise UserError(f"{path}:{number}: {shown(line)}: expected each value and each name once")
        values[value] = IGNORE if name == IGNORED else len(names)
        names += [name] if name != IGNORED else []
    if not 1 <= len(names) <= IGNORE:
        raise UserError(f"{path}: {len(names)} classes: expected 1 to {IGNORE} lines `value name`")
    warn_of_alike(path, names)
    return names, ClassMap(values, None)


def paired(images: Path, masks: Path, image_end: str = "", mask_end: str = "") -> list[Sample]:
    """The images below a folder with their masks below another, in sorted order, by path but for the ends of names.

    Args:
        image_end, mask_end: the ends, such as `_leftImg8bit.png`; files of others are passed over. Empty: suffixes.
    Raises: UserError that lists those without a partner in either folder.
    """
    with naming_unreadable(images):
        pictures, maps = files_by_key(images, image_end), files_by_key(masks, mask_end)
    refuse_lone(pictures, maps, f"{images} and {masks}")
    return [Sample(name_of(path, images), path, maps[key]) for key, path in pictures.items()]


def files_by_key(folder: Path, end: str) -> dict[str, Path]:
    """The files below a folder, sorted, by their paths in it without the ends of their names.

    Raises: UserError for two files of one key, and for a folder with none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in files_below(folder, ()):
        if not path.name.endswith(end):
            continue
        inside = path.relative_to(folder)
        key = str(inside).removesuffix(end) if end else str(inside.with_suffix(""))
        if key in files:
            raise UserError(f"{as_text(str(path))}: expected one file of its name, found {files[key].name} too")
        files[key] = path
    if not files:
        raise UserError(f"{folder}: expected files{f' *{end}' if end else ''}, found none")
    return files


def refuse_lone(pictures: dict[str, Path], maps: dict[str, Path], folders: str) -> None:
    """Raises UserError that lists images without masks, and masks without images, by their keys."""
    lone = [path for key, path in pictures.items() if key not in maps]
    alone = [path for key, path in maps.items() if key not in pictures]
    if lone or alone:
        lines = [f"{as_text(str(path))}: no mask" for path in lone]
        lines += [f"{as_text(str(path))}: no image" for path in alone]
        raise UserError(f"{folders}: {len(lone)} images without a mask, {len(alone)} masks without an image", *lines)
