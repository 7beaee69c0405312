"""Preparation's remarks on files: refused, skipped, or kept although something is odd, as a place in both splits."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from en.data.ffcv.file import Encoded
from en.data.order import Ints
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
    """

    name: str
    encoded: Encoded | None
    complaint: str = ""
    note: str = ""
    digest: bytes = b""
    is_as_it_is: bool = False
    counts: Ints = NONE


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
    _trained: dict[bytes, str] = field(default_factory=dict)  # names of the stored training images, by their digests

    def accept(self, checked: Checked, split: str) -> bool:
        """Notes the remark on a file, if any, those of train before those of val. Returns: whether it is stored."""
        unusable = checked.encoded is None
        self.warned += not unusable and bool(checked.complaint or checked.note)
        line = f"{checked.name}: {checked.complaint or checked.note}"
        if checked.complaint and (unusable or self.on_warning != "keep"):
            skip = self.skip_corrupt or (self.on_warning == "skip" and not unusable)
            (self.skipped if skip else self.refused).append(line)
            return False
        self.as_they_are += checked.is_as_it_is
        if checked.complaint or checked.note:
            self.kept.append(line)
        if len(checked.counts):
            self.tallies.setdefault(split, Tally()).add(checked.counts)
        if split == "train":
            self._trained.setdefault(checked.digest, checked.name)
        elif checked.digest in self._trained:
            self.in_both.append(f"{checked.name} is {self._trained[checked.digest]}")
        return True

    def refuse(self) -> None:
        """Raises UserError that lists every refused file."""
        if self.refused:
            listed = [*self.refused, *self.skipped]
            options = "--skip-corrupt skips them, --on-warning skip or keep those that libjpeg only warns about"
            raise UserError(f"{len(listed)} files are not intact images of a kind that is decoded; {options}:", *listed)
