"""The size of the training images as a function of the epoch: progressive resizing."""

import math
from dataclasses import dataclass

from en.size import Size


@dataclass(frozen=True)
class Resolution:
    """Sizes of training images.

    Attributes:
        full: from epoch `until` on, counted from 0.
        start: in the first epoch; in between each side rises linearly, rounded to `multiple`.
    """

    full: Size
    start: Size
    until: float
    multiple: int

    def at(self, epoch: int) -> Size:
        """The size in an epoch."""
        height, width = (self._side(start, full, epoch) for start, full in zip(self.start, self.full, strict=True))
        return height, width

    def sizes(self, epochs: int) -> list[Size]:
        """Every size in the course of so many epochs, ascending."""
        return sorted({self.at(epoch) for epoch in range(min(epochs, math.ceil(self.until) + 1))})

    def _side(self, start: int, full: int, epoch: int) -> int:
        if epoch >= self.until:
            return full
        exact = start + (full - start) * epoch / self.until
        return min(full, max(start, self.multiple * round(exact / self.multiple)))
