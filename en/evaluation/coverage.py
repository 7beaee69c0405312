"""Matches a data set's classes with a network's by what they are, not by their numbers."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from en.data.order import Ints
from en.errors import listed, shown

WNID = re.compile(r"(n[0-9]{8})(?![0-9A-Za-z])")
LEAST = 2  # classes that have to match


class Coverage(NamedTuple):
    """Holds what a network and a set have in common.

    Attributes:
        classes: ids of the classes of both, in the order of the network's outputs.
        outputs: their numbers among the network's, (covered,).
        places: by the set's class number the place in `classes`, or -1, (the set's classes,).
        samples: the set's images of these classes, (images,).
        of_outputs: how many outputs the network has.
    """

    classes: list[str]
    outputs: Ints
    places: Ints
    samples: Ints
    of_outputs: int

    @property
    def is_all(self) -> bool:
        """True where all of the network's outputs count."""
        return len(self.outputs) == self.of_outputs


def class_id(name: str) -> str | None:
    """Identifies a class by its name: the WordNet id that it begins with, else all of it; None for a number."""
    found = WNID.match(name)
    if found:
        return found[1]
    return name if any(char.isalpha() for char in name) else None


def cover(trained: Sequence[str], found: Sequence[str], labels: Ints) -> Coverage:
    """Matches a network's classes with a set's, by id.

    Args:
        trained: the names of the network's classes, in the order of its outputs.
        found: those of the set's.
        labels: the set's class numbers, (samples,).
    Raises: ValueError where names say too little, are ambiguous, or fewer than LEAST match.
    """
    known, own = numbers_of("the network's", trained), numbers_of("its", found)
    classes = [name for name in known if name in own]
    if len(classes) < LEAST:
        theirs, ours = (listed([shown(name) for name in names], 3) for names in (found, trained))
        raise ValueError(
            f"{len(classes)} of its {len(found)} classes ({theirs}) are among the network's {len(trained)} ({ours}): "
            f"expected {LEAST} or more of the same name or WordNet id"
        )
    outputs = np.array([known[name] for name in classes], np.int64)
    places = np.full(len(found), -1, np.int64)
    places[[own[name] for name in classes]] = np.arange(len(classes))
    return Coverage(classes, outputs, places, np.flatnonzero(places[labels] >= 0), len(trained))


def numbers_of(whose: str, names: Sequence[str]) -> dict[str, int]:
    """The class numbers by id, of those that have one. Raises: ValueError."""
    ids = [class_id(name) for name in names]
    if not any(ids):
        raise ValueError(
            f"{whose} classes are called {listed([shown(name) for name in names], 3)}, numbers that do not say what "
            "they are: expected names or WordNet ids, as by a list file (docs/data.md)"
        )
    if twice := [name for name, count in Counter(filter(None, ids)).items() if count > 1]:
        raise ValueError(f"two of {whose} classes are {shown(twice[0])}: expected each name or WordNet id once")
    return {name: number for number, name in enumerate(ids) if name is not None}
