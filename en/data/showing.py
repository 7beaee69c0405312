"""Shows views of images: their boxes decoded and resized, what lies beyond an image in the colour of the padding."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from en.data.jpeg import Images, Views, crop_resize, decode
from en.data.palette import Colour
from en.data.views import View

Decoder = Callable[[Images, Views, Tensor], dict[int, str]]
"""Decodes boxes that lie within their images: see en.data.jpeg.decode."""


def show(images: Images, view: View, padding: Colour, out: Tensor, decoder: Decoder = decode) -> dict[int, str]:
    """Decodes what a view shows of N images into `out`, (N, H, W, 3) uint8 of the view's size, without the GIL.

    Returns: what is wrong with each image that is damaged, by its row, whose pixels are then undefined.
    """
    refused: dict[int, str] = {}
    # One call for all images, but for those with padding, whose parts have sizes of their own.
    for is_within, group in groupby(range(len(view.boxes)), view.within(images.heights, images.widths).__getitem__):
        rows = list(group)
        for some in [slice(rows[0], rows[-1] + 1)] if is_within else [slice(row, row + 1) for row in rows]:
            showing = show_within if is_within else show_padded
            found = showing(rows_of(images, some), rows_of(view, some), padding, out[some], decoder)
            refused |= {some.start + row: reason for row, reason in found.items()}
    return refused


def rows_of(columns: Any, rows: slice) -> Any:
    """Some rows of a named tuple of arrays; what is no array stays."""
    return columns._replace(
        **{name: value[rows] for name, value in columns._asdict().items() if isinstance(value, np.ndarray)}
    )


def show_within(images: Images, view: View, padding: Colour, out: Tensor, decoder: Decoder) -> dict[int, str]:
    if view.windows is None:
        return decoder(images, crop_resize(view.boxes, view.flips, view.size), out)
    return decoder(images, Views(view.boxes, view.windows[:, 2:], view.windows[:, :2], view.flips, view.size), out)


def show_padded(images: Images, view: View, padding: Colour, out: Tensor, decoder: Decoder) -> dict[int, str]:
    """Shows one image whose view reaches beyond it: the view and the image cut to one another, amid the padding."""
    shown = out.numpy()  # torch writes to what was made in inference mode in no other thread
    shown[:] = padding
    seen = view.seen(0, int(images.heights[0]), int(images.widths[0]))
    if seen is None:
        return {}
    width = view.size[1]
    columns = slice(width - seen.columns.stop, width - seen.columns.start) if view.flips[0] else seen.columns
    part = torch.empty((1, *seen.size, 3), dtype=torch.uint8)
    box, scaled, start = (np.array([place]) for place in (seen.box, seen.scaled, seen.start))
    refused = decoder(images, Views(box, scaled, start, view.flips, seen.size), part)
    shown[:, seen.rows, columns] = part.numpy()
    return refused
