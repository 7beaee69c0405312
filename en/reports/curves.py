"""Figures: training curves over epochs, accuracy against compute."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from en.errors import in_one_line
from en.reports.figures import COLOURS, Picture, picture, style
from en.reports.statistics import Estimate, estimate
from en.reports.variants import Peers, Variant
from en.runs.row import Row

DASHES = ("-", "--", ":", "-.")
MARKERS = "os^Dv*Pp"
INCHES = (4.8, 3.2)  # of the axes; the legend stands below
LINE_INCHES = 0.2  # of the legend
TICKS = 5  # of the compute axis, at most
LEGEND = 60  # characters of a name in it


@dataclass(frozen=True)
class Line:
    """A number of a variant's log after each epoch, over its seeds.

    Attributes:
        name: the variant's.
        points: by epoch.
    """

    name: str
    points: dict[float, Estimate]


def line(variant: Variant, number: Callable[[Row], float]) -> Line:
    """A number of the logs' rows, epoch by epoch, over the variant's counted runs; NaN where a row has none."""
    logs = [run.log for run in variant.counted.values()]
    points: dict[float, Estimate] = {}
    for epoch in sorted({epoch for log in logs for epoch in log}):
        values = [number(log[epoch]) for log in logs if epoch in log]
        found = estimate([value for value in values if math.isfinite(value)])
        if found:
            points[epoch] = found
    return Line(variant.name, points)


def lines(peers: Peers, number: Callable[[Row], float]) -> list[Line]:
    """One for each variant that has logged the number."""
    return [found for found in (line(variant, number) for variant in peers.variants) if found.points]


def curve_picture(peers: Peers, found: Sequence[Line], name: str, title: str, heading: str) -> Picture:
    """Lines over epochs, shaded by the standard deviation over seeds.

    Args:
        peers: whose lines they are: a variant looks the same in all pictures of its peers.
        heading: what is drawn, with its unit.
    """
    with style():
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
    with style():
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
