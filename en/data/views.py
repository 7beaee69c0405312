"""Views of images: boxes, which may reach beyond them, mirrored or not, scaled to one size."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.data.order import Ints
from en.size import Size

Box = tuple[int, int, int, int]  # top, left, height, width, pixels
Flips = NDArray[np.bool_]


class Seen(NamedTuple):
    """The part of a view that shows the image; all around it is padding.

    Attributes:
        box: of the image, within it.
        rows, columns: of the view, which this box is scaled to.
    """

    box: Box
    rows: slice
    columns: slice


class View(NamedTuple):
    """A view of some images.

    Attributes:
        boxes: (B, 4) top, left, height, width, pixels of each image; what lies outside of it is padding.
        flips: (B,) whether each is mirrored.
        size: that the boxes are scaled to.
        windows: (B, 4) which part of the scaled boxes is shown instead, of that size: top, left; and height, width that
            the boxes, which lie within their images, are scaled to. None: the scaled boxes themselves.
    """

    boxes: Ints
    flips: Flips
    size: Size
    windows: Ints | None = None

    def within(self, heights: Ints, widths: Ints) -> NDArray[np.bool_]:
        """Tells which boxes lie within their images, of (B,) heights and widths in pixels."""
        top, left, height, width = self.boxes.T
        inside: NDArray[np.bool_] = (top >= 0) & (left >= 0) & (top + height <= heights) & (left + width <= widths)
        return inside

    def seen(self, row: int, height: int, width: int) -> Seen | None:
        """Cuts a box and its image, `height` x `width` pixels, to one another; None where they do not overlap.

        Inside, nothing is cut, and the whole view is seen. Else the part fills its share of the view, rounded to
        pixels (our choice).
        """
        top, left, box_height, box_width = self.boxes[row].tolist()
        down = overlap(top, box_height, height, self.size[0])
        across = overlap(left, box_width, width, self.size[1])
        if down is None or across is None:
            return None
        return Seen((down[0], across[0], down[1], across[1]), down[2], across[2])


def overlap(start: int, length: int, limit: int, out: int) -> tuple[int, int, slice] | None:
    """Cuts `length` pixels from `start` on to those from 0 to `limit`; of `out` pixels in the view, which show them.

    Returns: the start and length of what is left, and its place in the view; None for nothing.
    """
    first, last = max(start, 0), min(start + length, limit)
    place = slice(round((first - start) * out / length), round((last - start) * out / length))
    return (first, last - first, place) if first < last and place.start < place.stop else None
