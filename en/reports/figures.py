"""Figures as files, the same bytes each time, and as part of a page."""

import base64
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from en.errors import in_one_line

INK = "#1a1a1b"  # of text and axes; a page writes it in its own colour
PAPER = "fill: #ffffff"  # behind the axes, in a file; a page has its own
# Okabe and Ito's colours, told apart by all eyes, those that show on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DPI = 120  # of the images in a figure
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are text, also those with dollars
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "en",
    "pdf.fonttype": 42,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.3,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A figure for paper and page.

    Attributes:
        name: of its files.
        title, alt: what it shows, in a line, and in words for those who do not see it.
        svg, pdf: the files.
        chart: what a page's script draws in the figure's place; None for one that stays as it is.
    """

    name: str
    title: str
    alt: str
    svg: bytes
    pdf: bytes
    chart: dict[str, Any] | None = None

    @cached_property
    def inline(self) -> str:
        """SVG that takes the colours of the page around it, with the words inside."""
        return inline(self.svg, self.name, self.alt)


@dataclass(frozen=True)
class Photo:
    """A picture that was there before the report, as part of a page.

    Attributes:
        title, alt: as of a Picture.
        content, kind: the file, and its MIME type.
        file: its name among the report's figures; "" where it has none.
        is_wide: whether it takes the whole width of a page.
    """

    title: str
    alt: str
    content: bytes
    kind: str
    file: str = ""
    is_wide: bool = False

    @property
    def address(self) -> str:
        """The picture itself, as a data URI."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"


@contextmanager
def style(changes: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """matplotlib with the settings of these figures, and changes to them.

    Names may have letters that a figure's font lacks: they are boxes in the PDF, and whole in SVG.
    """
    with matplotlib.rc_context({**STYLE, **(changes or {})}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
        yield


def picture(figure: Figure, name: str, title: str, alt: str, chart: dict[str, Any] | None = None) -> Picture:
    """The figure as files, and its chart if it has one."""

    def saved(kind: str, date: str) -> bytes:
        file = BytesIO()
        figure.savefig(file, format=kind, dpi=DPI, metadata={date: None})
        return file.getvalue()

    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # what is laid out stays so; under any engine each file would be drawn twice
    svg, pdf = saved("svg", "Date"), saved("pdf", "CreationDate")
    return Picture(name, in_one_line(title), in_one_line(alt), svg, pdf, chart)


def spans(places: Sequence[float]) -> list[tuple[float, float]]:
    """Whole places along an axis, ascending, as ranges that reach half a place beyond them, neighbours in one."""
    found: list[tuple[float, float]] = []
    for place in places:
        joined = found and found[-1][1] == place - 0.5
        found[-1:] = [(found[-1][0], place + 0.5)] if joined else [*found[-1:], (place - 0.5, place + 0.5)]
    return found


def hatch(axes: Axes, places: Sequence[float], said: str) -> None:
    """Hatches whole places along the axis, and says why above the widest range of them."""
    ranges = spans(places)
    for low, high in ranges:
        axes.axvspan(low, high, facecolor="none", edgecolor="#808080", hatch="////", linewidth=0, alpha=0.4, zorder=0)
    if said and ranges:
        low, high = max(ranges, key=lambda ends: ends[1] - ends[0])
        of_axes = axes.get_xaxis_transform()
        axes.text((low + high) / 2, 1.01, said, transform=of_axes, ha="center", va="bottom", fontsize=8)


def inline(svg: bytes, name: str, alt: str) -> str:
    """matplotlib's SVG as part of a page: in the page's colour, of its width, with ids of its own and a title."""
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", LINK[1:].partition("}")[0])
    root = ElementTree.fromstring(svg)
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, of_page(key, value, name))
    for key in ("width", "height"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title"}
    title = ElementTree.Element(f"{SVG}title", id=f"{name}-title")
    title.text = alt
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def of_page(key: str, value: str, name: str) -> str:
    """An attribute of an SVG that shares its page with others."""
    if key == "id":
        return f"{name}-{value}"
    if key == LINK and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return re.sub(r"url\(#", f"url(#{name}-", value).replace(INK, "currentColor").replace(PAPER, "fill: none")
