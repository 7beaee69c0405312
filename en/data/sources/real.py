"""ReaL, labels of ImageNet's validation images by several people, joined to them by file names.

Beyer et al., "Are we done with ImageNet?", 2020 (arXiv 2006.07159).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from en.data.order import Ints
from en.data.sources.wordnet import imagenet_classes
from en.errors import UserError
from en.text_file import MOST_OF_LIST, read_text

IMAGES = 50_000
NAME = re.compile(r"(?:.*/)?ILSVRC2012_val_([0-9]{8})\.[A-Za-z]+")  # of number 1 to IMAGES


def read_real(path: Path) -> list[list[int]]:
    """Reads real.json: of each image, from ILSVRC2012_val_00000001 on, the numbers of its classes, possibly none.

    Raises: UserError.
    """
    text = read_text(path, "ReaL's real.json", MOST_OF_LIST)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}: expected ReaL's real.json") from error
    classes = range(len(imagenet_classes()))
    if not isinstance(found, list) or len(found) != IMAGES:
        raise UserError(f"{path}: expected ReaL's list of {IMAGES} lists of class numbers")
    for number, labels in enumerate(found, 1):
        if not isinstance(labels, list) or not all(type(label) is int and label in classes for label in labels):
            raise UserError(f"{path}: entry {number}: expected a list of class numbers from 0 to {classes[-1]}")
    return found


def join(labels: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]] | None:
    """The WordNet ids that ReaL gives to samples, by their file names; None if one is none of ImageNet's."""
    numbers = [NAME.fullmatch(name) for name in names]
    if not all(number and 1 <= int(number[1]) <= IMAGES for number in numbers):
        return None
    known = imagenet_classes()
    return [[known[label] for label in labels[int(number[1]) - 1]] for number in numbers if number]


def as_rows(ids: Sequence[Sequence[str]], covered: Sequence[str]) -> Ints:
    """The labels of samples as places among covered classes, (samples, most of them), -1 after the last.

    Classes that are not covered are left out.
    """
    place = {name: number for number, name in enumerate(covered)}
    known = [[place[name] for name in row if name in place] for row in ids]
    rows = np.full((len(known), max(map(len, known), default=0) or 1), -1, np.int64)
    for number, row in enumerate(known):
        rows[number, : len(row)] = row
    return rows
