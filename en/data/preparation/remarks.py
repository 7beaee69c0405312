"""Preparation's remarks on files: refused, skipped, or kept although something is odd, as a place in both splits."""

from dataclasses import dataclass, field
from typing import NamedTuple

from en.data.ffcv.file import Encoded
from en.errors import UserError


class Checked(NamedTuple):
    """One sample that was checked.

    Attributes:
        name: the sample's.
        encoded: the sample as it is stored; None for a file that is damaged or of a kind that is not decoded.
        complaint: why that is so, or libjpeg's warning; empty for an intact image.
        note: what is odd about an intact image's file; mostly empty.
        digest: of the file, or of the pixels that stand for it.
        is_as_it_is: the sample is a JPEG file byte for byte.
    """

    name: str
    encoded: Encoded | None
    complaint: str = ""
    note: str = ""
    digest: bytes = b""
    is_as_it_is: bool = False


@dataclass
class Remarks:
    """One line per file: those that stop preparation, those skipped, and those kept with a remark.

    Attributes:
        on_warning, skip_corrupt: as in prepare.
        warned: how many files libjpeg or Pillow warned about, skipped or kept.
        as_they_are: how many JPEG files are stored byte for byte.
        in_both: images that are stored for evaluation and, byte for byte, for training too, with the name there.
    """

    on_warning: str
    skip_corrupt: bool
    refused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    in_both: list[str] = field(default_factory=list)
    warned: int = 0
    as_they_are: int = 0
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
