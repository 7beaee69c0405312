"""The side of the training images as a function of the epoch: progressive resizing."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Resolution:
    """Sides of square training images, pixels.

    Attributes:
        full: from epoch `until` on, counted from 0.
        start: in the first epoch; in between the side rises linearly, rounded to `multiple`.
    """

    full: int
    start: int
    until: float
    multiple: int

    def at(self, epoch: int) -> int:
        """The side in an epoch."""
        if epoch >= self.until:
            return self.full
        exact = self.start + (self.full - self.start) * epoch / self.until
        return min(self.full, max(self.start, self.multiple * round(exact / self.multiple)))

    def sides(self, epochs: int) -> list[int]:
        """Every side in the course of so many epochs, ascending."""
        return sorted({self.at(epoch) for epoch in range(min(epochs, math.ceil(self.until) + 1))})
