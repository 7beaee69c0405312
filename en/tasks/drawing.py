"""Pictures of maps of classes: the image, the truth, the prediction, what is wrong, and the names of the colours."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from en.data.palette import Colour
from en.data.targets import IGNORE, nearest
from en.errors import in_one_line
from en.size import Size

Picture = NDArray[np.uint8]  # (H, W, 3)
SIDE = 256  # pixels of a panel's longer side, whatever the image has, so that files stay small
GAP, LINE = 6, 16  # pixels between panels, of a line of text
SWATCH = 11  # pixels of a colour's square
COVER = 0.65  # of the image by a class's colour
WRONG: Colour = (255, 0, 200)  # on grey, where there is no such colour
STRIPES: tuple[Colour, Colour] = ((255, 255, 255), (60, 60, 60))  # no set has a class that is striped
PERIOD = 8  # pixels of a dark and a light stripe
MOST_NAMES, MOST_LETTERS = 24, 24
INK, PAPER = (20, 20, 20), (255, 255, 255)


class Mark(NamedTuple):
    """A pattern beside what it stands for; None: words alone."""

    pattern: Picture | None
    text: str


def draw_maps(
    image: Picture, target: Picture, predicted: Picture, names: Sequence[str], palette: Sequence[Colour]
) -> Picture:
    """Draws an image in grey under the colours of its true and its predicted classes, and of the wrong pixels.

    Pixels that do not count are striped in the truth and among the wrong ones; the prediction is shown there too.

    Args:
        image: (3, H, W) RGB.
        target, predicted: (H, W) class numbers; in the target IGNORE where a pixel does not count.
    """
    size = scaled_size(target.shape[0], target.shape[1])
    counted = target != IGNORE
    wrong = counted & (target != predicted)
    share = f"{100 * wrong.sum() / counted.sum():.1f} %" if counted.any() else "no pixel counts"
    colours = np.array(palette, np.uint8)
    shown = scaled_image(image, size)
    grey = np.repeat(np.rint(shown @ (0.299, 0.587, 0.114)).astype(np.uint8)[:, :, None], 3, 2)
    truth, guess, ignored, missed = (scaled_map(each, size) for each in (target, predicted, ~counted, wrong))
    striped = stripes(size)
    panels = {
        "image": shown,
        "truth": np.where(ignored[:, :, None], striped, covered(grey, colours[np.where(ignored, 0, truth)])),
        "prediction": covered(grey, colours[guess]),
        f"wrong: {share}": np.where(
            ignored[:, :, None], striped, np.where(missed[:, :, None], np.array(WRONG, np.uint8), grey)
        ),
    }
    pixels = np.bincount(np.concatenate([target[counted], predicted[counted]]), minlength=len(names))
    return sheet(panels, marks(pixels, names, palette, bool((~counted).any())))


def scaled_size(height: int, width: int) -> Size:
    """The size of a panel for an image of a size."""
    longest = max(height, width)
    return max(1, round(height * SIDE / longest)), max(1, round(width * SIDE / longest))


def scaled_image(image: Picture, size: Size) -> Picture:
    """(3, H, W) as (h, w, 3): the mean of the pixels where it becomes smaller, else the nearest."""
    whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    way = Image.Resampling.BOX if whole.height > size[0] else Image.Resampling.NEAREST
    return np.asarray(whole.resize(size[::-1], way))


def scaled_map(values: NDArray[np.generic], size: Size) -> NDArray[np.generic]:
    """(H, W) as (h, w): the nearest pixels."""
    rows, columns = (nearest(length, count, slice(0, count)) for length, count in zip(values.shape, size, strict=True))
    found: NDArray[np.generic] = values[rows[:, None], columns]
    return found


def covered(grey: Picture, colours: Picture) -> Picture:
    """Colours over an image, which is seen through them."""
    mixed: Picture = np.rint((1 - COVER) * grey + COVER * colours).astype(np.uint8)
    return mixed


def stripes(size: Size) -> Picture:
    """(h, w, 3) of slanting stripes."""
    rows, columns = np.indices(size)
    found: Picture = np.array(STRIPES, np.uint8)[(rows + columns) % PERIOD // (PERIOD // 2)]
    return found


def marks(pixels: NDArray[np.int64], names: Sequence[str], palette: Sequence[Colour], some_ignored: bool) -> list[Mark]:
    """Draws what the colours stand for: the classes that are there, those of the most pixels first, and stripes.

    Args:
        pixels: of each class.
    """
    square = (SWATCH, SWATCH, 3)
    order = [number for number in np.argsort(-pixels, kind="stable").tolist() if pixels[number]]
    found = [Mark(np.full(square, palette[n], np.uint8), written(names[n])) for n in order[:MOST_NAMES]]
    if rest := len(order) - len(found):
        found.append(Mark(None, f"and {rest} more"))
    return found + ([Mark(stripes((SWATCH, SWATCH)), "does not count")] if some_ignored else [])


def written(name: str) -> str:
    """A name in letters that every font of Pillow's has, and not too many."""
    line = in_one_line(name).encode("latin-1", "backslashreplace").decode("latin-1")
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 3]}..."


def sheet(panels: dict[str, Picture], found: Sequence[Mark]) -> Picture:
    """Panels of one size side by side under their names, and marks below."""
    font = ImageFont.load_default()
    height, width = next(iter(panels.values())).shape[:2]
    step = max(width, *(int(font.getlength(title)) + 1 for title in panels)) + GAP
    whole = step * len(panels) - GAP
    places, rows = placed(found, [int(font.getlength(mark.text)) for mark in found], whole)
    page = Image.new("RGB", (whole, LINE + height + GAP + LINE * rows), PAPER)
    pen = ImageDraw.Draw(page)
    for at, (title, panel) in enumerate(panels.items()):
        pen.text((at * step, 2), title, fill=INK, font=font)
        page.paste(Image.fromarray(panel), (at * step, LINE))
    for mark, (left, row) in zip(found, places, strict=True):
        top = LINE + height + GAP + row * LINE
        if mark.pattern is not None:
            page.paste(Image.fromarray(mark.pattern), (left, top + 1))
            pen.rectangle((left, top + 1, left + SWATCH - 1, top + SWATCH), outline=INK)
        pen.text((left + SWATCH + 4, top), mark.text, fill=INK, font=font)
    return np.asarray(page)


def placed(found: Sequence[Mark], lengths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """Lays marks out in lines of a width. Returns: the left end and the line of each, and how many lines there are."""
    places, left, row = [], 0, 0
    for length in lengths:
        taken = SWATCH + 4 + length + 2 * GAP
        if left and left + taken > width:
            left, row = 0, row + 1
        places.append((left, row))
        left += taken
    return places, row + 1 if found else 0
