"""Figures: training curves over epochs, accuracy against compute."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from en.errors import in_one_line
from en.reports.statistics import Estimate, estimate
from en.reports.variants import Peers, Variant

INK = "#1a1a1b"  # of text and axes; a page writes it in its own colour
PAPER = "fill: #ffffff"  # behind the axes, in a file; a page has its own
# Okabe and Ito's colours, told apart by all eyes, those that show on white and on black; then other dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "--", ":", "-.")
MARKERS = "os^Dv*Pp"
INCHES = (4.8, 3.2)  # of the axes; the legend stands below
LINE_INCHES = 0.2  # of the legend
TICKS = 5  # of the compute axis, at most
LEGEND = 60  # characters of a name in it
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
class Line:
    """A number of a variant's log after each epoch, over its seeds.

    Attributes:
        name: the variant's.
        points: by epoch.
    """

    name: str
    points: dict[int, Estimate]


@dataclass(frozen=True)
class Picture:
    """A figure for paper and page.

    Attributes:
        name: of its files.
        title, alt: what it shows, in a line, and in words for those who do not see it.
        svg, pdf: the files.
        inline: SVG that takes the colours of the page around it, with the words inside.
    """

    name: str
    title: str
    alt: str
    svg: bytes
    pdf: bytes
    inline: str


def line(variant: Variant, key: str) -> Line:
    """A number of the logs, epoch by epoch, over the variant's counted runs."""
    logs = [run.log for run in variant.counted.values()]
    points = {}
    for epoch in sorted({epoch for log in logs for epoch in log}):
        found = estimate([log[epoch][key] for log in logs if key in log.get(epoch, {})])
        if found:
            points[epoch] = found
    return Line(variant.name, points)


def lines(peers: Peers, key: str) -> list[Line]:
    """One for each variant that has logged the number."""
    return [found for found in (line(variant, key) for variant in peers.variants) if found.points]


def curve_picture(peers: Peers, found: Sequence[Line], name: str, title: str, heading: str) -> Picture:
    """Lines over epochs, shaded by the standard deviation over seeds.

    Args:
        peers: whose lines they are: a variant looks the same in all pictures of its peers.
        heading: what is drawn, with its unit.
    """
    with style(), warnings_of_fonts_off():
        figure, axes = empty(len(found))
        handles, look = [], looks(peers)
        for each in found:
            colour, dash, marker = look[each.name]
            epochs, means = [*each.points], [point.mean for point in each.points.values()]
            spreads = [point.sd or 0.0 for point in each.points.values()]
            single = marker if len(epochs) == 1 else ""
            handles += axes.plot(epochs, means, color=colour, linestyle=dash, marker=single)
            ends = zip(means, spreads, strict=True)
            low, high = zip(*((mean - spread, mean + spread) for mean, spread in ends), strict=True)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(heading)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, handles, [each.name for each in found])
        said = "; ".join(map(course, found))
        alt = f"{title}, mean over seeds, shaded by one standard deviation. {said}."
        return picture(figure, name, title, alt)


def course(found: Line) -> str:
    """A line in words."""
    (first, begin), (last, end) = next(iter(found.points.items())), [*found.points.items()][-1]
    ends = f"{begin.mean:.4g} after epoch {first}"
    return f"{found.name}: {ends}" + (f", {end.mean:.4g} after epoch {last}" if last != first else "")


def compute_picture(peers: Peers, name: str, title: str, heading: str) -> Picture:
    """The score of each finished variant over its GMACs, with the 95 % interval of the mean."""
    with style(), warnings_of_fonts_off():
        figure, axes = empty(len(peers.finished))
        handles, said, look = [], [], looks(peers)
        for variant in peers.finished:
            score, (colour, _, marker) = variant.score, look[variant.name]
            assert score is not None
            half = None if score.high is None else score.high - score.mean
            point = axes.errorbar(
                variant.gmacs, score.mean, yerr=half, linestyle="none", color=colour, marker=marker, capsize=3
            )
            handles.append(point)
            interval = "" if half is None else f" ± {half:.2f}"
            said.append(f"{variant.name}: {score.mean:.2f}{interval} at {variant.gmacs:.4g} GMACs")
        axes.margins(0.15)
        axes.xaxis.set_major_locator(MaxNLocator(TICKS))
        axes.set_xlabel("GMACs of one image, normalizers included")
        axes.set_ylabel(heading)
        legend(figure, handles, [variant.name for variant in peers.finished])
        return picture(figure, name, title, f"{title}, with 95 % intervals. {'; '.join(said)}.")


@contextmanager
def style() -> Iterator[None]:
    """matplotlib with the settings of these figures."""
    with matplotlib.rc_context(STYLE):
        yield


@contextmanager
def warnings_of_fonts_off() -> Iterator[None]:
    """Names may have letters that a figure's font lacks; they are boxes in the PDF, and whole in SVG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
        yield


def looks(peers: Peers) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and marker of each variant by its name."""
    dashed = ((colour, dash) for dash in cycle(DASHES) for colour in COLOURS)
    triples = ((colour, dash, marker) for (colour, dash), marker in zip(dashed, cycle(MARKERS), strict=False))
    return dict(zip((variant.name for variant in peers.variants), triples, strict=False))


def empty(names: int) -> tuple[Figure, Axes]:
    """A figure with room for a legend of so many names."""
    width, height = INCHES
    figure = Figure(figsize=(width, height + LINE_INCHES * names), layout="constrained")
    return figure, figure.add_subplot()


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names below the axes. A space before each keeps matplotlib from leaving out those that begin with "_"."""
    shown = [in_one_line(name) for name in names]
    shown = [name if len(name) <= LEGEND else f"{name[: LEGEND - 15]}...{name[-12:]}" for name in shown]
    figure.legend(handles, [f" {name}" for name in shown], loc="outside lower left", frameon=False, fontsize=9)


def picture(figure: Figure, name: str, title: str, alt: str) -> Picture:
    """The figure as files, and as SVG for the page."""

    def saved(kind: str, date: str) -> bytes:
        file = BytesIO()
        figure.savefig(file, format=kind, metadata={date: None})
        return file.getvalue()

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what has been laid out once stays so
    alt, svg = in_one_line(alt), saved("svg", "Date")
    return Picture(name, title, alt, svg, saved("pdf", "CreationDate"), inline(svg, name, alt))


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
    if key == LINK:
        return f"#{name}-{value[1:]}"
    return re.sub(r"url\(#", f"url(#{name}-", value).replace(INK, "currentColor").replace(PAPER, "fill: none")
