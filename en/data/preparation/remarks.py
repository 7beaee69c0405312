"""Preparation's remarks on files: refused, skipped, or kept although something is odd, as a place in both splits."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.data.ffcv.writer import Encoded
from en.data.order import Ints
from en.data.sources.compact import Texts
from en.errors import UserError

NONE = np.zeros(0, np.int64)


class Checked(NamedTuple):
    """One sample that was checked.

    Attributes:
        name: what messages call it.
        encoded: the sample as it is stored; None for a file that is damaged or of a kind that is not decoded.
        complaint: why that is so, or libjpeg's warning; empty for an intact image.
        note: what is odd about an intact image's file; mostly empty.
        digest: of the file, or of the pixels that stand for it.
        is_as_it_is: the sample is a JPEG file byte for byte.
        counts: pixels of each class, and last those that do not count, (classes + 1,); (0,) without a map.
        oddities: by which the file is counted: see oddities.py.
    """

    name: str
    encoded: Encoded | None
    complaint: str = ""
    note: str = ""
    digest: bytes = b""
    is_as_it_is: bool = False
    counts: Ints = NONE
    oddities: tuple[str, ...] = ()


class Digests:
    """Finds the name that was first added with a digest of 32 bytes; takes some 100 bytes for each.

    All are added before the first is looked for.
    """

    def __init__(self) -> None:
        self._added, self._names = bytearray(), Texts()

    def add(self, digest: bytes, name: str) -> None:
        self._added += digest
        self._names.append(name)

    def find(self, digest: bytes) -> str | None:
        heads, order = self._sorted
        at = int(np.searchsorted(heads, np.frombuffer(digest, np.uint64, 1)[0]))
        while at < len(heads) and heads[at] == np.frombuffer(digest, np.uint64, 1)[0]:
            number = int(order[at])
            if self._added[32 * number : 32 * number + 32] == digest:
                return self._names[number]
            at += 1
        return None

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], Ints]:
        """The first 8 bytes of the digests in ascending order, and which digests these are."""
        heads = np.frombuffer(self._added, np.uint64)[::4]
        order = np.argsort(heads, kind="stable")
        return heads[order], order


@dataclass
class Tally:
    """Counts what the maps of a split hold.

    Attributes:
        counts: pixels of each class, and last those that do not count, (classes + 1,).
        all_ignored: maps of which no pixel counts.
    """

    counts: Ints = field(default_factory=NONE.copy)
    all_ignored: int = 0

    def add(self, counts: Ints) -> None:
        """Adds one map."""
        self.counts = self.counts + counts if len(self.counts) else counts
        self.all_ignored += not counts[:-1].any()

    @property
    def ignored(self) -> float:
        """The share of the pixels that does not count."""
        return float(self.counts[-1] / self.counts.sum())

    def described(self) -> dict[str, object]:
        """Says for dataset.json what there is: pixels by class number, and what does not count."""
        return {
            "pixels": self.counts[:-1].tolist(),
            "ignored": self.ignored,
            "images_all_ignored": self.all_ignored,
        }


@dataclass
class Remarks:
    """One line per file: those that stop preparation, those skipped, and those kept with a remark.

    Attributes:
        on_warning, skip_corrupt: as in prepare.
        warned: how many files libjpeg or Pillow warned about, skipped or kept.
        as_they_are: how many JPEG files are stored byte for byte.
        in_both: images that are stored for evaluation and, byte for byte, for training too, with the name there.
        tallies: what the stored maps hold, by split.
        oddities: how many stored images have each.
    """

    on_warning: str
    skip_corrupt: bool
    refused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    in_both: list[str] = field(default_factory=list)
    warned: int = 0
    as_they_are: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    oddities: Counter[str] = field(default_factory=Counter)
    _trained: Digests = field(default_factory=Digests)  # of the stored training images

    def accept(self, checked: Checked, split: str) -> bool:
        """Notes the remark on a file, if any, those of train before those of val. Returns: whether it is stored."""
        unusable = checked.encoded is None
        self.warned += not unusable and bool(checked.complaint or checked.note)
        line = f"{checked.name}: {checked.complaint or checked.note}"
        if unusable or (checked.complaint and self.on_warning != "keep"):
            skip = self.skip_corrupt or (self.on_warning == "skip" and not unusable)
            (self.skipped if skip else self.refused).append(line)
            return False
        self.as_they_are += checked.is_as_it_is
        if checked.complaint or checked.note:
            self.kept.append(line)
        self.oddities.update(checked.oddities)
        if len(checked.counts):
            self.tallies.setdefault(split, Tally()).add(checked.counts)
        if split == "train":
            self._trained.add(checked.digest, checked.name)
        elif name := self._trained.find(checked.digest):
            self.in_both.append(f"{checked.name} is {name}")
        return True

    def refuse(self) -> None:
        """Raises UserError that lists every refused file."""
        if self.refused:
            listed = [*self.refused, *self.skipped]
            options = "--skip-corrupt skips them, --on-warning skip or keep those that libjpeg only warns about"
            raise UserError(f"{len(listed)} files are not intact images of a kind that is decoded; {options}:", *listed)
