"""Lines and points of variants: one description, drawn on paper by matplotlib and on a page by its script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from en.errors import in_one_line
from en.reports.figures import COLOURS, Picture, hatch, picture, spans, style
from en.reports.statistics import Estimate

DASHES = {"-": (), "--": (8, 4), ":": (2, 3), "-.": (9, 3, 2, 3)}  # matplotlib's, and lengths in pixels
MARKERS = "os^Dv*Pp"
WIDEST, NARROWER, LEAST_WIDTH = 2.8, 0.5, 1.3  # of lines, from the first on: equal ones show beneath each other
INCHES = (4.8, 3.2)  # of the axes; the legend stands below
LINE_INCHES = 0.2  # of the legend
NAMES_INCHES = 1.0  # of names along the axis
MOST_NAMES = 60  # along an axis; of more, every other, third, ...
TICKS = 6  # of an axis, at most
LEGEND = 60  # characters of a name in it
TICK = 24  # of a name along an axis
DECADE = 10.0  # from such a quotient of the highest value and the lowest on, an axis may be logarithmic


class Look(NamedTuple):
    """How a line is drawn: a colour, a dash and a marker, as matplotlib names them."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Line:
    """Numbers of a variant over its seeds, along an axis.

    Attributes:
        name: the variant's.
        points: by the place on the axis, such as an epoch.
        seeds: the numbers of each seed in the same way; may be empty.
    """

    name: str
    points: dict[float, Estimate]
    seeds: Mapping[int, Mapping[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """Lines on a pair of axes, or points of one place each.

    Attributes:
        lines, looks: what is drawn, and how, in the same order.
        x, y: what the axes are, with units.
        is_interval: whether spreads are 95 % intervals; else sample standard deviations.
        is_joined: whether the points of a line are joined.
        logs: whether the axes x and y may be logarithmic, where values are far apart.
        names: of whole places along the axis x; where there are names, missing points are gaps.
        absent: places at which a line has no point for a reason, by the reason.
        level: a value to compare with, and its name.
    """

    lines: Sequence[Line]
    looks: Sequence[Look]
    x: str
    y: str
    is_interval: bool = False
    is_joined: bool = True
    logs: tuple[bool, bool] = (False, False)
    names: Mapping[float, str] = field(default_factory=dict)
    absent: Mapping[str, Sequence[float]] = field(default_factory=dict)
    level: tuple[float, str] | None = None

    @property
    def places(self) -> list[float]:
        """Returns the places along the axis x, ascending."""
        return sorted({place for line in self.lines for place in line.points} | self.names.keys())

    @property
    def means(self) -> list[float]:
        return [point.mean for line in self.lines for point in line.points.values()]

    @property
    def log_x(self) -> bool:
        return self.logs[0] and are_far_apart(self.places)

    @property
    def log_y(self) -> bool:
        return self.logs[1] and are_far_apart(self.means)

    @property
    def shown_level(self) -> tuple[float, str] | None:
        """Returns the level where it lies among the values, so that the axis begins where these do."""
        low, high = min(self.means), max(self.means)
        return self.level if self.level and low - (high - low) / 4 <= self.level[0] <= high else None

    def spread(self, point: Estimate) -> tuple[float, float]:
        """The ends of what is drawn around a point: itself where that is not known."""
        if self.is_interval and point.low is not None and point.high is not None:
            return point.low, point.high
        around = 0.0 if self.is_interval else point.sd or 0.0
        return point.mean - around, point.mean + around

    def data(self) -> dict[str, Any]:
        """Returns what the page's script draws."""
        places = self.places
        return {
            "x": places,
            "labels": [self.x, self.y],
            "logs": [self.log_x, self.log_y],
            "joined": self.is_joined,
            "spread": "95 % interval" if self.is_interval else "±",
            "names": [in_one_line(self.names[place]) for place in places] if self.names else None,
            "absent": [{"text": said, "spans": spans(where)} for said, where in self.absent.items()],
            "level": self.shown_level,
            "lines": [self.line_data(line, at, places) for at, line in enumerate(self.lines)],
        }

    def line_data(self, line: Line, at: int, places: Sequence[float]) -> dict[str, Any]:
        """Returns a line by columns, None where it has no point."""
        points = [line.points.get(place) for place in places]
        ends = [(None, None) if point is None else self.spread(point) for point in points]
        seeds = {str(seed): [own.get(place) for place in places] for seed, own in line.seeds.items()}
        return {
            "name": in_one_line(line.name),
            "colour": self.looks[at].colour,
            "dash": DASHES[self.looks[at].dash],
            "width": width(at),
            "values": [None if point is None else point.mean for point in points],
            "low": [rounded(low) for low, _ in ends],
            "high": [rounded(high) for _, high in ends],
            "n": [0 if point is None else point.n for point in points],
            "seeds": seeds if len(seeds) > 1 else {},
        }


def rounded(value: float | None) -> float | None:
    """A number that is drawn and not read, in few digits."""
    return None if value is None else float(f"{value:.6g}")


def are_far_apart(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) >= DECADE * min(values)


def width(at: int) -> float:
    """The width of the line at a place among others, in points."""
    return max(LEAST_WIDTH, WIDEST - NARROWER * at)


def looks(count: int) -> list[Look]:
    """Looks of so many lines: no two alike among the first 24, neighbours of another colour and another dash."""
    dashes, colours = [*DASHES], len(COLOURS)
    return [
        Look(COLOURS[at % colours], dashes[(at + at // (2 * colours)) % len(dashes)], MARKERS[at % len(MARKERS)])
        for at in range(count)
    ]


def chart_picture(chart: Chart, name: str, title: str, alt: str) -> Picture:
    """The chart as figure and as part of a page."""
    with style():
        figure = draw(chart)
        return picture(figure, name, title, alt, chart.data())


def draw(chart: Chart) -> Figure:
    figure, axes = empty(len(chart.lines), bool(chart.names))
    handles = []
    for at, line in enumerate(chart.lines):
        handles.append((joined if chart.is_joined else points)(axes, chart, at, line))
    for said, places in chart.absent.items():
        hatch(axes, places, said)
    if chart.shown_level:
        value, said = chart.shown_level
        axes.axhline(value, color="#808080", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(said, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    scale(axes, chart)
    legend(figure, handles, [line.name for line in chart.lines])
    return figure


def joined(axes: Axes, chart: Chart, at: int, line: Line) -> Any:
    """Draws a line, shaded by its spread, and returns its handle; a line of one point has a marker."""
    places = chart.places if chart.names else [*line.points]
    found = [line.points.get(place) for place in places]
    ends = [(np.nan, np.nan) if point is None else chart.spread(point) for point in found]
    colour, dash, marker = chart.looks[at]
    shown = marker if len(line.points) == 1 or chart.names else ""
    means = [np.nan if point is None else point.mean for point in found]
    low, high = zip(*ends, strict=True)
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    (handle,) = axes.plot(
        places, means, color=colour, linestyle=dash, marker=shown, markersize=4, linewidth=0.75 * width(at)
    )
    return handle


def points(axes: Axes, chart: Chart, at: int, line: Line) -> Any:
    """Draws points with their spread, and returns their handle."""
    colour, _, marker = chart.looks[at]
    places, means = [*line.points], [point.mean for point in line.points.values()]
    ends = [chart.spread(point) for point in line.points.values()]
    around = np.array([[mean - low, high - mean] for mean, (low, high) in zip(means, ends, strict=True)]).T
    return axes.errorbar(places, means, yerr=around, linestyle="none", color=colour, marker=marker, capsize=3)


def scale(axes: Axes, chart: Chart) -> None:
    """Labels the axes and chooses their scales, which begin where the data are."""
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.margins(*((0.02, 0.05) if chart.is_joined else (0.15, 0.15)))
    if chart.log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=chart.is_joined))
    if chart.log_y:
        axes.set_yscale("log")
    if chart.names:
        places = [*chart.names][:: -(-len(chart.names) // MOST_NAMES)]
        texts = [f" {shortened(chart.names[place], TICK)}" for place in places]
        axes.set_xticks(places, texts, rotation=90, fontsize=7)


def empty(names: int, along: bool = False) -> tuple[Figure, Axes]:
    """A figure with room for a legend of so many names, and for names along the axis."""
    width, height = INCHES
    height += LINE_INCHES * names + (NAMES_INCHES if along else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names below the axes. A space before each keeps matplotlib from leaving out those that begin with "_"."""
    shown = [f" {shortened(name, LEGEND)}" for name in names]
    figure.legend(handles, shown, loc="outside lower left", frameon=False, fontsize=9)


def shortened(name: str, limit: int) -> str:
    """A name in one line, of at most so many characters: its beginning and its end."""
    text = in_one_line(name)
    end = limit // 5
    return text if len(text) <= limit else f"{text[: limit - end - 3]}...{text[-end:]}"
