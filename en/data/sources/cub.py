"""CUB-200-2011 by its text files, which number images and classes from 1.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

import re
from pathlib import Path

from en.data.sources.source import Sample, Source, as_text, is_below
from en.errors import UserError, shown
from en.text_file import MOST_OF_LIST, read_text

FOLDER, IMAGES = "CUB_200_2011", "images"
CLASSES, NAMES, LABELS, SPLIT = "classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"
NUMBER = re.compile("[0-9]{1,9}")
SPLITS = {"1": "train", "0": "val"}  # is_training_image; its images for testing are those that runs are scored on


def root_of(path: Path) -> Path | None:
    """The folder of the text files at a path, which the archive's folder may be above; None where there is none."""
    return next((place for place in (path, path / FOLDER) if (place / LABELS).is_file()), None)


def is_cub(path: Path) -> bool:
    return root_of(path) is not None


def read_cub(path: Path) -> Source:
    """Reads the images of images.txt by their numbers, which join it to the classes and to the official split.

    Samples are named by the paths of images.txt; its images for testing are val.

    Raises: UserError.
    """
    root = root_of(path)
    assert root is not None
    classes, names = read_table(root / CLASSES), read_table(root / NAMES)
    labels, split = read_table(root / LABELS), read_table(root / SPLIT)
    for file, table in {LABELS: labels, SPLIT: split}.items():
        if others := sorted(table.keys() ^ names.keys(), key=int):
            raise UserError(f"{root / file}: image {others[0]}: expected the {len(names)} images of {NAMES}")
    if len({*names.values()}) < len(names) or not all(map(is_below, names.values())):
        raise UserError(f"{root / NAMES}: expected a path below {IMAGES}/ on each line, each once")
    order = {number: index for index, number in enumerate(classes)}
    splits: dict[str, list[Sample]] = {name: [] for name in SPLITS.values()}
    for number, name in names.items():
        label, part = labels[number], split[number]
        if label not in order or part not in SPLITS:
            files = f"a class of {CLASSES} in {LABELS}, and 0 or 1 in {SPLIT}"
            raise UserError(f"{root / NAMES}: image {number}: class {label}, training {part}: expected {files}")
        splits[SPLITS[part]].append(Sample(as_text(name), root / IMAGES / name, order[label]))
    if not all(splits.values()):
        raise UserError(f"{root / SPLIT}: expected images for training, 1, and others for testing, 0")
    return Source("CUB-200-2011", list(classes.values()), splits)


def read_table(path: Path) -> dict[str, str]:
    """Reads lines `number value`. Raises: UserError, also for a number that stands there twice."""
    rows: dict[str, str] = {}
    lines = read_text(path, "one of CUB's text files", MOST_OF_LIST).splitlines()
    for line in filter(str.strip, lines):
        number, _, value = line.strip().partition(" ")
        if not NUMBER.fullmatch(number) or not value or number in rows:
            raise UserError(f"{path}: {shown(line)}: expected `number value`, each number once")
        rows[number] = value
    return rows
