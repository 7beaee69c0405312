"""What preparation has to say about files: refused, left out, or kept though something was odd."""

from dataclasses import dataclass, field
from typing import NamedTuple

from en.data.ffcv.file import Encoded
from en.errors import UserError


class Checked(NamedTuple):
    """One sample in its stored form, or None for a damaged file.

    Attributes:
        name: the sample's.
        encoded: None for a damaged file.
        complaint: why the file is damaged, or what libjpeg warned of; empty for a whole image.
        note: what is odd about a whole image's file; mostly empty.
    """

    name: str
    encoded: Encoded | None
    complaint: str = ""
    note: str = ""


@dataclass
class Remarks:
    """Lines about files: what stops preparation, what is left out, and what is kept though it was remarked on.

    Attributes:
        on_warning, skip_corrupt: as in prepare.
        warned: how many files libjpeg or Pillow warned of, left out or kept.
    """

    on_warning: str
    skip_corrupt: bool
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    warned: int = 0

    def takes(self, checked: Checked) -> bool:
        """Notes what there is to say of a file. Returns: whether it is stored."""
        damaged = checked.encoded is None
        self.warned += not damaged and bool(checked.complaint or checked.note)
        line = f"{checked.name}: {checked.complaint or checked.note}"
        if checked.complaint and (damaged or self.on_warning != "keep"):
            puts_up = self.skip_corrupt or (self.on_warning == "skip" and not damaged)
            (self.left_out if puts_up else self.refused).append(line)
            return False
        if checked.complaint or checked.note:
            self.kept.append(line)
        return True

    def refuse(self) -> None:
        """Raises UserError that lists every refused file."""
        if self.refused:
            listed = [*self.refused, *self.left_out]
            how = "--skip-corrupt leaves them out, --on-warning skip or keep is for those that libjpeg only warns of"
            raise UserError(f"{len(listed)} files are not whole images; {how}:", *listed)
