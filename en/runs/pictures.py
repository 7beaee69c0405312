"""Pictures for TensorBoard: images as the network saw them, shares layer by layer, and the confusion of classes.

Drawn by Pillow alone, so that training needs no library of figures; the same bytes each time.
"""

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from en.data.order import Ints
from en.errors import in_one_line

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Shares = Mapping[str, Mapping[str, float]]  # by layer, from bottom to top, and kind
INK, GREY, LINE, PAPER, ACCENT = (26, 26, 27), (128, 128, 128), (224, 224, 224), (255, 255, 255), (0, 114, 178)
SIZE = 12  # pixels of letters
QUALITY = 80  # of JPEG, colours at the full size
MOST_IMAGES, MOST_PIXELS = 16, 2**19  # of a sheet, so that files stay small (our choice)
SHEET, GAP = 1024, 2  # pixels of a sheet's width, about, and between its images
PLOT_HEIGHT, LEAST_WIDTH, MOST_WIDTH = 220, 360, 1200  # of a plot over layers
LEFT, TOP, RIGHT = 40, 26, 12
MOST_EARLIER = 8  # earlier evaluations beside the last one
MOST_LETTERS = 24  # of a name
HATCH = 7  # pixels from one line to the next
NUMBERED, NAMED, SIDE = 12, 40, 640  # classes up to which cells have numbers, and names; pixels of a confusion of more


def few(images: int, height: int, width: int) -> int:
    """Counts the images of a batch that a sheet shows: MOST_IMAGES, or so many that are MOST_PIXELS, but one."""
    return min(images, MOST_IMAGES, max(1, MOST_PIXELS // (height * width)))


def sheet(images: Pixels) -> bytes:
    """Images (N, 3, H, W) side by side, as a JPEG file."""
    count, _, height, width = images.shape
    columns = min(count, max(1, SHEET // width))
    rows = -(-count // columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for at, each in enumerate(images):
        top, left = (at // columns) * (height + GAP), (at % columns) * (width + GAP)
        page[top : top + height, left : left + width] = each.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(page).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def taking_part(shares: Shares, kind: str) -> dict[str, float]:
    """Picks the shares of a kind where it takes part: one of exactly 0, which no softmax gives, was left out."""
    return {layer: own[kind] for layer, own in shares.items() if own.get(kind)}


def over_layers(kind: str, words: str, shares: Shares, earlier: Sequence[Shares]) -> bytes:
    """Draws the shares of a kind over the layers from bottom to top, those of earlier evaluations in grey, as a PNG.

    Layers in which it takes no part are hatched, and no line crosses them.

    Args:
        words: what the shares are of, such as "epoch 3".
        earlier: in their order; of more than MOST_EARLIER, some in even distances, the first among them.
    """
    layers, own = [*shares], taking_part(shares, kind)
    shown = [taking_part(each, kind) for each in spread(earlier, MOST_EARLIER)]
    values = [value for each in (own, *shown) for value in each.values()]
    low, high = min(0.0, *values, 0.0), max(1.0, *values, 1.0)
    width = max(LEAST_WIDTH, min(MOST_WIDTH, 15 * len(layers)))
    step, every = width / len(layers), -(-15 * len(layers) // width)
    names = {place: name[-MOST_LETTERS:] for place, name in enumerate(layers) if place % every == 0}
    font = ImageFont.load_default(SIZE)
    below = 8 + max(int(font.getlength(in_one_line(name))) for name in names.values())
    canvas = Image.new("RGB", (LEFT + width + RIGHT, TOP + PLOT_HEIGHT + below), PAPER)
    draw = ImageDraw.Draw(canvas)

    def point(place: int, value: float) -> tuple[float, float]:
        return LEFT + (place + 0.5) * step, TOP + PLOT_HEIGHT * (high - value) / (high - low)

    draw_grid(draw, font, width, low, high)
    absent = [place for place, name in enumerate(layers) if name not in own]
    hatch(canvas, [(LEFT + place * step, LEFT + (place + 1) * step) for place in absent])
    for age, each in enumerate(shown):
        shade = 215 - 95 * age // max(1, len(shown))
        for line in pieces(layers, each):
            draw.line([point(*each) for each in line], (shade, shade, shade), 1)
    for line in pieces(layers, own):
        points = [point(*each) for each in line]
        draw.line(points, ACCENT, 2)
        for x, y in points:
            draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), ACCENT)
    for place, name in names.items():
        write_upwards(canvas, in_one_line(name), font, round(LEFT + (place + 0.5) * step), TOP + PLOT_HEIGHT + 4)
    said = [f"{kind}, {words}", *(["grey: earlier ones, the first the lightest"] if shown else [])]
    said += ["hatched: left out"] if absent else []
    draw.text((LEFT, 5), in_one_line("; ".join(said)), INK, font)
    return as_png(canvas)


def spread(found: Sequence[Shares], most: int) -> list[Shares]:
    """At most so many of a sequence, in even distances from the first one on."""
    return [*found[:: max(1, -(-len(found) // most))]]


def pieces(layers: Sequence[str], own: Mapping[str, float]) -> Iterator[list[tuple[int, float]]]:
    """The lines without a gap, each as places and values of neighbouring layers."""
    line: list[tuple[int, float]] = []
    for place, name in enumerate(layers):
        if name in own:
            line.append((place, own[name]))
        elif line:
            yield line
            line = []
    if line:
        yield line


def draw_grid(draw: ImageDraw.ImageDraw, font: Font, width: int, low: float, high: float) -> None:
    """Draws five lines across, each with its value."""
    for part in range(5):
        y, value = TOP + PLOT_HEIGHT * (4 - part) / 4, low + (high - low) * part / 4
        draw.line([(LEFT, y), (LEFT + width, y)], LINE, 1)
        draw.text((LEFT - 6, y), f"{value:.3g}", INK, font, anchor="rm")


def hatch(canvas: Image.Image, columns: Sequence[tuple[float, float]]) -> None:
    """Hatches columns of a plot, each from one x to another."""
    rows, places = np.indices((PLOT_HEIGHT, canvas.width))
    lines = Image.fromarray(np.where((rows + places) % HATCH == 0, 255, 0).astype(np.uint8))
    for left, right in columns:
        box = (round(left), 0, round(right), PLOT_HEIGHT)
        canvas.paste(GREY, (box[0], TOP), lines.crop(box))


def write_upwards(canvas: Image.Image, words: str, font: Font, x: int, y: int) -> None:
    """Writes words from below up to a point, the middle of their end."""
    ink = Image.new("L", (int(font.getlength(words)) + 2, SIZE + 3))
    ImageDraw.Draw(ink).text((0, 0), words, 255, font)
    turned = ink.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(INK, (x - turned.width // 2, y), turned)


def confusion_map(confusion: Ints, names: Sequence[str], words: str) -> bytes:
    """Draws the share of each class, a row, that was taken for which class, a column, as a PNG.

    Colours follow the square root of the share, so that a hundredth can be seen; a class of which there is nothing is
    hatched. Up to NUMBERED classes cells have their %; up to NAMED they have names; of more than SIDE, several are one.

    Args:
        confusion: (classes, classes).
        words: what it is of, such as "epoch 3".
    """
    pooled = -(-len(confusion) // SIDE)
    table = in_blocks(confusion, pooled)
    whole = table.sum(1, keepdims=True)
    shares = np.divide(table, whole, out=np.zeros(table.shape), where=whole > 0)
    classes = len(table)
    cell = 40 if classes <= NUMBERED else 18 if classes <= NAMED else max(1, SIDE // classes)
    depth = np.sqrt(shares).repeat(cell, 0).repeat(cell, 1)[:, :, None]
    colours = np.rint(np.array(PAPER) * (1 - depth) + np.array((8, 48, 107)) * depth).astype(np.uint8)
    rows, places = np.indices(colours.shape[:2])
    empty = (whole[:, 0] == 0).repeat(cell)[:, None] & ((rows + places) % HATCH == 0)
    colours[empty] = GREY
    font = ImageFont.load_default(SIZE)
    shown = [in_one_line(name)[:MOST_LETTERS] for name in names] if len(names) <= NAMED else []
    margin = 8 + max((int(font.getlength(name)) + 6 for name in shown), default=0)
    side = classes * cell
    title = f"{words}: rows are classes, columns what they were taken for"
    title += ", %" if classes <= NUMBERED else f"; {pooled} classes a cell" if pooled > 1 else ""
    width = max(margin + side + 8, 16 + int(font.getlength(title)))
    canvas = Image.new("RGB", (width, TOP + side + margin), PAPER)
    canvas.paste(Image.fromarray(colours), (margin, TOP))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 5), title, INK, font)
    draw.rectangle((margin - 1, TOP - 1, margin + side, TOP + side), outline=GREY)
    for at, name in enumerate(shown):
        centre = at * cell + cell // 2
        draw.text((margin - 5, TOP + centre), name, INK, font, anchor="rm")
        write_upwards(canvas, name, font, margin + centre, TOP + side + 4)
    if classes <= NUMBERED:
        for row, column in np.argwhere(table > 0):
            middle = (margin + column * cell + cell // 2, TOP + row * cell + cell // 2)
            share = shares[row, column]
            draw.text(middle, f"{100 * share:.1f}", PAPER if share > 0.25 else INK, font, anchor="mm")
    return as_png(canvas)


def in_blocks(table: Ints, size: int) -> Ints:
    """Adds up a table of (n, n) in blocks of so many rows and columns."""
    starts = np.arange(0, len(table), size)
    found: Ints = np.add.reduceat(np.add.reduceat(table, starts, 0), starts, 1)
    return found


def as_png(canvas: Image.Image) -> bytes:
    file = io.BytesIO()
    canvas.quantize(64).save(file, "PNG")
    return file.getvalue()
