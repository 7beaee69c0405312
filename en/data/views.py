"""Views of images: boxes, which may reach beyond them, mirrored or not, scaled to one size."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.data.order import Ints
from en.size import Size

Box = tuple[int, int, int, int]  # top, left, height, width, pixels
Flips = NDArray[np.bool_]
IGNORE = 255  # in a map of classes: a pixel that does not count, as all that lies beyond the image


class Seen(NamedTuple):
    """The part of a view that shows the image; all around it is padding.

    Attributes:
        box: of the image, within it.
        scaled: height and width that this box is scaled to.
        start: top and left of what is shown of that.
        rows, columns: of the view, which show it.
    """

    box: Box
    scaled: Size
    start: tuple[int, int]
    rows: slice
    columns: slice

    @property
    def size(self) -> Size:
        """Height and width of what is shown."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class View(NamedTuple):
    """A view of some images.

    Attributes:
        boxes: (B, 4) top, left, height, width, pixels of each image; what lies outside of it is padding.
        flips: (B,) whether each is mirrored.
        size: that the boxes are scaled to.
        windows: (B, 4) which part of the scaled boxes is shown instead, of that size: top, left; and height, width that
            the boxes, which lie within their images, are scaled to. What lies outside of those is padding. None: the
            scaled boxes themselves.
    """

    boxes: Ints
    flips: Flips
    size: Size
    windows: Ints | None = None

    def replaced(self, rows: Ints, other: "View") -> "View":
        """These views, some of them by others of the same images and size."""
        is_other = np.zeros((len(self.boxes), 1), bool)
        is_other[rows] = True
        windows = self.windows
        if windows is not None and other.windows is not None:
            windows = np.where(is_other, other.windows, windows)
        flips = np.where(is_other[:, 0], other.flips, self.flips)
        return View(np.where(is_other, other.boxes, self.boxes), flips, self.size, windows)

    def within(self, heights: Ints, widths: Ints) -> NDArray[np.bool_]:
        """Tells which views show no padding, of images of (B,) heights and widths in pixels."""
        top, left, height, width = self.boxes.T
        inside: NDArray[np.bool_] = (top >= 0) & (left >= 0) & (top + height <= heights) & (left + width <= widths)
        if self.windows is not None:
            top, left, height, width = self.windows.T
            inside &= (top >= 0) & (left >= 0) & (top + self.size[0] <= height) & (left + self.size[1] <= width)
        return inside

    def seen(self, row: int, height: int, width: int) -> Seen | None:
        """Cuts a box and its image, `height` x `width` pixels, to one another; None where they do not overlap.

        Inside, nothing is cut, and the whole view is seen. Else the part fills its share of the view, rounded to
        pixels (our choice). A window and its scaled box are cut to one another to the pixel.
        """
        top, left, box_height, box_width = self.boxes[row].tolist()
        if self.windows is not None:
            first_row, first_column, *scaled = self.windows[row].tolist()
            tall = overlap(first_row, self.size[0], scaled[0], self.size[0])
            wide = overlap(first_column, self.size[1], scaled[1], self.size[1])
            if tall is None or wide is None:
                return None
            box = (top, left, box_height, box_width)
            return Seen(box, (scaled[0], scaled[1]), (tall[0], wide[0]), tall[2], wide[2])
        down = overlap(top, box_height, height, self.size[0])
        across = overlap(left, box_width, width, self.size[1])
        if down is None or across is None:
            return None
        rows, columns = down[2], across[2]
        size = rows.stop - rows.start, columns.stop - columns.start
        return Seen((down[0], across[0], down[1], across[1]), size, (0, 0), rows, columns)


def overlap(start: int, length: int, limit: int, out: int) -> tuple[int, int, slice] | None:
    """Cuts `length` pixels from `start` on to those from 0 to `limit`; of `out` pixels in the view, which show them.

    Returns: the start and length of what is left, and its place in the view; None for nothing.
    """
    first, last = max(start, 0), min(start + length, limit)
    place = slice(round((first - start) * out / length), round((last - start) * out / length))
    return (first, last - first, place) if first < last and place.start < place.stop else None
