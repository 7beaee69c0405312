"""Files beside the .beton files of a prepared set: classes.json, and dataset.json, which describes it."""

import json
from pathlib import Path

from en.data.ffcv.file import BetonFile
from en.data.palette import Colour, varied
from en.data.sources import SPLITS
from en.data.sources.source import as_text
from en.data.targets import BY_FIELD, TARGETS, Target
from en.errors import UserError, shown

LONGEST_NAME = 900  # characters; a summary has room for it and what preparation changed


def read_classes(root: Path) -> list[str]:
    """Reads the class names beside the .beton files, in the order of the labels.

    Raises: UserError, also for a folder that is not prepared, with how to do it.
    """
    path = root / "classes.json"
    if not path.exists():
        raise UserError(f"{root}: {not_prepared(root)}")
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON list of class names: {error}") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: expected a JSON list of class names")
    return classes


def not_prepared(root: Path) -> str:
    """Returns what is wrong with a folder without classes.json, the last file of a preparation, and what to do."""
    if not root.is_dir():
        return "no such folder: expected OUT of `en-prepare SOURCE OUT`"
    if all((root / split).is_dir() for split in SPLITS):
        return "class folders, not prepared: expected OUT of `en-prepare SOURCE OUT`, or data.loader=folder"
    return "no classes.json, so not prepared: expected OUT of `en-prepare SOURCE OUT`"


def read_target(file: BetonFile) -> Target:
    """Returns what kind a file's targets are of, by the dataset.json beside it, or else by the field that keeps them.

    Raises: UserError for a kind that is unknown or kept in another field.
    """
    path = file.path.with_name("dataset.json")
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("target") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error
    known = {each.name for each in TARGETS.values() if each.field is file.field}
    if name is not None and name not in known:
        raise UserError(f"{path}: target={shown(name)}: expected {' or '.join(known)}, which {file.path.name} may hold")
    return (BY_FIELD[file.field] if name is None else TARGETS[name])()


def read_palette(root: Path, classes: int) -> list[Colour]:
    """Reads the colours of the classes; others that differ well where dataset.json has none. Raises: UserError."""
    path = root / "dataset.json"
    try:
        colours = json.loads(path.read_text(encoding="utf-8")).get("palette") if path.is_file() else None
        return varied(classes) if colours is None else [(int(r), int(g), int(b)) for r, g, b in colours]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error


def read_cropped(root: Path) -> bool:
    """Tells whether the images are stored as evaluation shows them (see Source). Raises: UserError."""
    path = root / "dataset.json"
    try:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("cropped") is True
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error


def read_name(root: Path) -> str:
    """Reads the data set's name and how preparation changed its images; without dataset.json, the folder's name.

    Raises: UserError.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return as_text(root.resolve().name)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, storage = str(described["name"]), described["storage"]
        name.encode()  # half a character, which JSON can hold, ends in a UnicodeError, a ValueError
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a name of {len(name)} characters, more than {LONGEST_NAME}")
        changes = [f"re-encoded at JPEG quality {storage['quality']}"] if storage["kind"] == "reencode" else []
        changes += [f"largest side {storage['max_side']}"] if storage["max_side"] else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the output of scripts/prepare_data.py: {error}") from error
    return name + (f" ({', '.join(changes)})" if changes else "")
