"""Pictures for TensorBoard: images as the network saw them, shares layer by layer, and the confusion of classes.

Drawn by Pillow alone, so that training needs no library of figures; the same bytes each time.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from en.data.order import Ints
from en.errors import in_one_line

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Shares = Mapping[str, Mapping[str, float]]  # by layer, from bottom to top, and kind
INK, GREY, LINE, PAPER = (26, 26, 27), (128, 128, 128), (224, 224, 224), (255, 255, 255)
ACCENT, DEEP = (0, 114, 178), (8, 48, 107)  # of lines, and of a share of 1
SIZE = 12  # pixels of letters
QUALITY = 80  # of JPEG, colours at the full size
MOST_IMAGES, MOST_PIXELS = 16, 2**19  # of a sheet, so that files stay small (our choice)
SHEET, ACROSS, GAP = 1024, 8, 2  # pixels of a sheet's width, images side by side, both at most; pixels between them
PLOT_HEIGHT, LEAST_WIDTH, MOST_WIDTH, COLUMN = 220, 440, 1200, 15  # of a plot over layers; a layer's at least
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
    columns = min(count, ACROSS, max(1, SHEET // width))
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


@dataclass(frozen=True)
class Plot:
    """The area of a plot over layers.

    Attributes:
        layers: their names, from left to right.
        low, high: the ends of its axis.
    """

    layers: Sequence[str]
    low: float
    high: float

    @property
    def width(self) -> int:
        """Pixels of all layers."""
        return max(LEAST_WIDTH, min(MOST_WIDTH, COLUMN * len(self.layers)))

    @property
    def names(self) -> dict[int, str]:
        """The names that fit below, by the places of their layers."""
        every = -(-COLUMN * len(self.layers) // self.width)
        return {place: in_one_line(name[-MOST_LETTERS:]) for place, name in [*enumerate(self.layers)][::every]}

    def edge(self, place: float) -> float:
        """The x at which a layer's column begins; of a half more, its middle."""
        return LEFT + place * self.width / len(self.layers)

    def point(self, place: int, value: float) -> tuple[float, float]:
        return self.edge(place + 0.5), TOP + PLOT_HEIGHT * (self.high - value) / (self.high - self.low)


def over_layers(kind: str, words: str, shares: Shares, earlier: Sequence[Shares]) -> bytes:
    """Draws the shares of a kind over the layers from bottom to top, those of earlier evaluations in grey, as a PNG.

    Layers in which it takes no part are hatched, and no line crosses them.

    Args:
        words: what the shares are of, such as "epoch 3".
        earlier: in their order; of more than MOST_EARLIER, some in even distances, the first among them.
    """
    own, before = taking_part(shares, kind), [taking_part(each, kind) for each in spread(earlier, MOST_EARLIER)]
    values = [value for each in (own, *before) for value in each.values()]
    plot = Plot([*shares], min(0.0, *values, 0.0), max(1.0, *values, 1.0))
    font = ImageFont.load_default(SIZE)
    below = 8 + max(int(font.getlength(name)) for name in plot.names.values())
    canvas = Image.new("RGB", (LEFT + plot.width + RIGHT, TOP + PLOT_HEIGHT + below), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_grid(draw, font, plot)
    absent = [place for place, name in enumerate(shares) if name not in own]
    hatch(canvas, [(plot.edge(place), plot.edge(place + 1)) for place in absent])
    for age, each in enumerate(before):
        shade = 215 - 95 * age // len(before)
        for line in pieces(plot, each):
            draw.line(line, (shade, shade, shade), 1)
    for line in pieces(plot, own):
        draw.line(line, ACCENT, 2)
        for x, y in line:
            draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), ACCENT)
    for place, name in plot.names.items():
        write_upwards(canvas, name, font, round(plot.edge(place + 0.5)), TOP + PLOT_HEIGHT + 4)
    said = [f"{kind}, {words}", *(["grey: earlier ones, the first the lightest"] if before else [])]
    said += ["hatched: left out"] if absent else []
    draw.text((LEFT, 5), in_one_line("; ".join(said)), INK, font)
    return as_png(canvas)


def spread(found: Sequence[Shares], most: int) -> list[Shares]:
    """At most so many of a sequence, in even distances from the first one on."""
    return [*found[:: max(1, -(-len(found) // most))]]


def pieces(plot: Plot, own: Mapping[str, float]) -> Iterator[list[tuple[float, float]]]:
    """Yields the lines without a gap, each as the points of neighbouring layers."""
    line: list[tuple[float, float]] = []
    for place, name in enumerate(plot.layers):
        if name in own:
            line.append(plot.point(place, own[name]))
        elif line:
            yield line
            line = []
    if line:
        yield line


def draw_grid(draw: ImageDraw.ImageDraw, font: Font, plot: Plot) -> None:
    """Draws five lines across, each with its value."""
    for part in range(5):
        value = plot.low + (plot.high - plot.low) * part / 4
        _, y = plot.point(0, value)
        draw.line([(LEFT, y), (LEFT + plot.width, y)], LINE, 1)
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
    classes = len(table)
    cell = 40 if classes <= NUMBERED else 18 if classes <= NAMED else max(1, SIDE // classes)
    font, side = ImageFont.load_default(SIZE), classes * cell
    shown = [in_one_line(name)[:MOST_LETTERS] for name in names] if len(names) <= NAMED else []
    margin = 8 + max((int(font.getlength(name)) + 6 for name in shown), default=0)
    title = f"{words}: rows are classes, columns what they were taken for"
    title += ", %" if classes <= NUMBERED else f"; {pooled} classes a cell" if pooled > 1 else ""
    width = max(margin + side + 8, 16 + int(font.getlength(title)))
    canvas = Image.new("RGB", (width, TOP + side + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 5), title, INK, font)
    draw.rectangle((margin - 1, TOP - 1, margin + side, TOP + side), outline=GREY)
    canvas.paste(Image.fromarray(coloured(table, cell)), (margin, TOP))
    for at, name in enumerate(shown):
        centre = at * cell + cell // 2
        draw.text((margin - 5, TOP + centre), name, INK, font, anchor="rm")
        write_upwards(canvas, name, font, margin + centre, TOP + side + 4)
    for row, column in np.argwhere(table > 0) if classes <= NUMBERED else ():
        middle = (margin + column * cell + cell // 2, TOP + row * cell + cell // 2)
        share = table[row, column] / table[row].sum()
        draw.text(middle, f"{100 * share:.1f}", PAPER if share > 0.25 else INK, font, anchor="mm")
    return as_png(canvas)


def coloured(table: Ints, cell: int) -> Pixels:
    """Colours cells of so many pixels by the square root of their share of the row; hatches empty rows."""
    whole = table.sum(1, keepdims=True)
    shares = np.divide(table, whole, out=np.zeros(table.shape), where=whole > 0)
    depth = np.sqrt(shares).repeat(cell, 0).repeat(cell, 1)[:, :, None]
    colours: Pixels = np.rint(np.array(PAPER) * (1 - depth) + np.array(DEEP) * depth).astype(np.uint8)
    rows, places = np.indices(colours.shape[:2])
    colours[(whole == 0).repeat(cell, 0) & ((rows + places) % HATCH == 0)] = GREY
    return colours


def in_blocks(table: Ints, size: int) -> Ints:
    """Adds up a table of (n, n) in blocks of so many rows and columns."""
    starts = np.arange(0, len(table), size)
    found: Ints = np.add.reduceat(np.add.reduceat(table, starts, 0), starts, 1)
    return found


def as_png(canvas: Image.Image) -> bytes:
    file = io.BytesIO()
    canvas.quantize(64).save(file, "PNG")
    return file.getvalue()
