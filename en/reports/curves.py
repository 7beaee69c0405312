"""Charts of variants: training curves over epochs, accuracy against compute."""

import math
from collections.abc import Callable, Mapping, Sequence

from en.reports.charts import Chart, Line, Look, chart_picture, looks
from en.reports.figures import Picture
from en.reports.statistics import estimate
from en.reports.variants import Peers, Variant
from en.runs.row import Row


def line(variant: Variant, number: Callable[[Row], float]) -> Line:
    """A number of the logs' rows, epoch by epoch, over the variant's counted runs; not one where a row has none."""
    found = {seed: {epoch: number(row) for epoch, row in run.log.items()} for seed, run in variant.counted.items()}
    return line_of(variant.name, found)


def line_of(name: str, by_seed: Mapping[int, Mapping[float, float]]) -> Line:
    """A line of the numbers of each seed by their places; those that are not finite are left out."""
    seeds = {
        seed: {place: value for place, value in sorted(own.items()) if math.isfinite(value)}
        for seed, own in by_seed.items()
    }
    points = {}
    for place in sorted({place for own in seeds.values() for place in own}):
        found = estimate([own[place] for own in seeds.values() if place in own])
        assert found is not None
        points[place] = found
    return Line(name, points, seeds)


def lines(peers: Peers, number: Callable[[Row], float]) -> list[Line]:
    """One for each variant that has logged the number."""
    return [found for found in (line(variant, number) for variant in peers.variants) if found.points]


def look_of(peers: Peers) -> dict[str, Look]:
    """The look of each variant by its name, the same in all pictures of its peers."""
    names = [variant.name for variant in peers.variants]
    return dict(zip(names, looks(len(names)), strict=True))


def curve_picture(
    peers: Peers,
    found: Sequence[Line],
    name: str,
    title: str,
    heading: str,
    log: bool = False,
    level: tuple[float, str] | None = None,
) -> Picture:
    """Lines over epochs, shaded by the standard deviation over seeds.

    Args:
        peers: whose lines they are.
        heading: what is drawn, with its unit.
        log: whether its axis may be logarithmic.
        level: a value to compare with, and its name.
    """
    look = look_of(peers)
    chart = Chart(found, [look[each.name] for each in found], "epoch", heading, logs=(False, log), level=level)
    said = "; ".join(map(course, found))
    alt = f"{title}, mean over seeds, shaded by one standard deviation. {said}."
    return chart_picture(chart, name, title, alt)


def course(found: Line) -> str:
    """A line in words."""
    (first, begin), (last, end) = next(iter(found.points.items())), [*found.points.items()][-1]
    ends = f"{begin.mean:.4g} after epoch {first:g}"
    return f"{found.name}: {ends}" + (f", {end.mean:.4g} after epoch {last:g}" if last != first else "")


def compute_picture(peers: Peers, name: str, title: str, heading: str) -> Picture:
    """The score of each finished variant over its GMACs, with the 95 % interval of the mean."""
    found, said, look = [], [], look_of(peers)
    for variant in peers.finished:
        score = variant.score
        assert score is not None
        found.append(Line(variant.name, {variant.gmacs: score}))
        interval = "" if score.high is None else f" ± {score.high - score.mean:.2f}"
        said.append(f"{variant.name}: {score.mean:.2f}{interval} at {variant.gmacs:.4g} GMACs")
    x = "GMACs of one image, normalizers included"
    chart = Chart(found, [look[each.name] for each in found], x, heading, True, False, (True, False))
    return chart_picture(chart, name, title, f"{title}, with 95 % intervals. {'; '.join(said)}.")
