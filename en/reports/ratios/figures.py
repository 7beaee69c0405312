"""Figures of ratios: by layer, by class, over the epochs, and the samples at either extreme."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from en.errors import in_one_line
from en.reports.figures import COLOURS, Picture, hatch, picture, style
from en.reports.ratios.tables import EXTREMES, ClassMean, EpochMean, Extreme, Spread, takes_part

# Of each normalizer: its colour, and a marker for those who print in grey.
LOOKS = {"bn": (COLOURS[0], "o"), "in": (COLOURS[1], "s"), "ln": (COLOURS[2], "^"), "gn": (COLOURS[3], "D")}
SMALL = {"font.size": 9, "axes.titlesize": 9, "axes.grid": False}  # for many axes side by side
PerNormalizer = TypeVar("PerNormalizer", Spread, EpochMean)
MOST_NAMES = 60  # of layers along an axis; of more, every other, third, ...
MOST_CLASSES = 12  # in a panel; of more, those at either end
UNSHOWN = "#808080"  # of a class whose interval contains 0
NAME = 28  # characters of a name in a figure


def layer_picture(rows: Sequence[Spread]) -> Picture:
    """The mean of each normalizer's ratio over the layers with the range of 90 % of the samples; below, the sd.

    A normalizer that a layer leaves out has a gap there, hatched.
    """
    names, absent = list(dict.fromkeys(row.layer for row in rows)), left_out(rows)
    with style(SMALL):
        figure = Figure(figsize=(max(4.8, min(14, 1.5 + 0.17 * len(names))), 5.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for kind, own in by_normalizer(rows).items():
            colour, marker = LOOKS[kind]
            places, mixed = [row.position for row in own], np.array([takes_part(row.mean) for row in own])
            upper.plot(places, gaps([row.mean for row in own], mixed), color=colour, marker=marker, markersize=3,
                       label=kind)  # fmt: skip
            low, high = gaps([row.q05 for row in own], mixed), gaps([row.q95 for row in own], mixed)
            upper.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
            deviations = gaps([np.nan if row.sd is None else row.sd for row in own], mixed)
            lower.plot(places, deviations, color=colour, marker=marker, markersize=3)
        upper.set(ylabel="ratio: mean, 5 to 95 %")
        lower.set(ylabel="standard deviation")
        lower.set_ylim(bottom=0)
        every = -(-len(names) // MOST_NAMES)
        shown = [short(name) for name in names[::every]]
        lower.set_xticks(range(1, len(names) + 1, every), shown, rotation=90, fontsize=7)
        for axes in (upper, lower):
            axes.grid(True)
            for kinds, where in absent.items():
                hatch(axes, where, f"{kinds} left out" if axes is upper else "")
        figure.legend(loc="outside upper center", ncols=len(LOOKS), frameon=False)
        ends_in_words = " ".join(mixture(rows, name) for name in dict.fromkeys((names[0], names[-1])))
        without = " ".join(f"{len(found)} layers leave {kinds} out." for kinds, found in absent.items())
        alt = f"Mean ratio over {len(names)} layers, bottom to top. {ends_in_words} {without}".strip()
        return picture(figure, "layers", "Mean ratio of each normalizer by layer, and its spread over samples", alt)


def left_out(rows: Sequence[Spread]) -> dict[str, list[float]]:
    """The positions of the layers that leave normalizers out, by the names of these: {"in": [3, 4]}."""
    absent: dict[float, list[str]] = {}
    for row in rows:
        if not takes_part(row.mean):
            absent.setdefault(row.position, []).append(row.normalizer)
    return by_names(absent)


def by_names(absent: Mapping[float, Sequence[str]]) -> dict[str, list[float]]:
    """Places by the names that are absent there, so that no two ranges overlap."""
    found: dict[str, list[float]] = {}
    for place, names in absent.items():
        found.setdefault(", ".join(names), []).append(place)
    return found


def gaps(values: Sequence[float], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The values, not a number where they are not there."""
    return np.where(there, np.array(values, np.float64), np.nan)


def mixture(rows: Sequence[Spread], layer: str) -> str:
    """A layer's mean ratios in words."""
    means = ", ".join(
        f"{row.normalizer} {format(row.mean, '.3g') if takes_part(row.mean) else 'left out'}"
        for row in rows
        if row.layer == layer
    )
    return f"{short(layer)}: {means}."


def class_picture(rows: Sequence[ClassMean]) -> Picture:
    """How far the mean ratios of classes are from that of all images, at up to three layers, all on one axis.

    Intervals hold at 95 % for all classes of a panel together; a class whose interval contains 0 is drawn in grey.
    """
    panels = {key: [*own] for key, own in groupby(rows, lambda row: (row.place, row.layer, row.normalizer))}
    places = list(dict.fromkeys(row.place for row in rows))
    kinds = list(dict.fromkeys(row.normalizer for row in rows))
    tallest = max(len(ends(own)) for own in panels.values())
    with style(SMALL):
        size = (1 + 2.8 * len(kinds), len(places) * (1.1 + 0.17 * tallest))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(places), len(kinds), squeeze=False, sharex=True)
        for axes in grid.flat:
            axes.set_visible(False)
        for (place, _, kind), own in panels.items():
            draw_classes(grid[places.index(place)][kinds.index(kind)], own)
        figure.supxlabel("mean ratio of a class less that of all images, which the title says", fontsize=9)
        title = "Classes by how far their mean ratio is from that of all images"
        alt = f"{title}, with intervals that hold at 95 % for all classes together. {said_of(panels.values())}"
        return picture(figure, "classes", title, alt)


def draw_classes(axes: Axes, rows: Sequence[ClassMean]) -> None:
    """The classes of one normalizer in one layer, the highest on top."""
    shown, (place, layer, kind, *_) = ends(rows)[::-1], rows[0]
    colour, marker = LOOKS[kind]
    axes.set_visible(True)
    axes.axvline(0, color="#808080", linewidth=0.8)
    for at, row in enumerate(shown):
        axes.errorbar(
            row.difference,
            at,
            xerr=row.half(len(rows)),
            color=colour if row.leans(len(rows)) else UNSHOWN,
            marker=marker,
            markersize=4,
            capsize=2,
        )
    axes.set_yticks(range(len(shown)), [short(row.name) for row in shown], fontsize=7)
    axes.tick_params(labelbottom=True)
    title = f"{place}, {short(layer)}\n{kind} {rows[0].overall:.3g}"
    axes.set_title(title if any(row.leans(len(rows)) for row in rows) else f"{title}, no class is shown to lean")
    axes.xaxis.set_major_locator(MaxNLocator(3))


def by_mean(rows: Sequence[ClassMean]) -> list[ClassMean]:
    """The classes of a panel, from the highest mean to the lowest."""
    return sorted(rows, key=lambda row: (-row.mean, row.target))


def ends(rows: Sequence[ClassMean]) -> list[ClassMean]:
    """The classes of a panel in that order; of many, those at either end."""
    ordered, half = by_mean(rows), MOST_CLASSES // 2
    return ordered if len(ordered) <= MOST_CLASSES else ordered[:half] + ordered[-half:]


def said_of(panels: Iterable[Sequence[ClassMean]]) -> str:
    """The panels in words."""
    return " ".join(
        f"{own[0].place} layer, {own[0].normalizer} {own[0].overall:.4g}: {leaning(own)}." for own in panels
    )


def leaning(rows: Sequence[ClassMean]) -> str:
    """A panel in words: the utmost of the classes that are shown to lean."""
    leaning = [row for row in by_mean(rows) if row.leans(len(rows))]
    if not leaning:
        return none_leans(rows)
    most, least = leaning[0], leaning[-1]
    said = f"most {short(most.name)} {most.difference:+.2g}" if most.difference > 0 else ""
    other = f"least {short(least.name)} {least.difference:+.2g}" if least.difference < 0 else ""
    return ", ".join(part for part in (said, other) if part)


def none_leans(rows: Sequence[ClassMean]) -> str:
    """Says so of a panel, and how much the classes differ at most."""
    return f"no class is shown to lean, none differs by more than {max(abs(row.difference) for row in rows):.2g}"


def epoch_picture(rows: Sequence[EpochMean], places: Mapping[str, str]) -> Picture:
    """Mean ratios over the epochs: of all layers in which a normalizer takes part, and of up to three layers."""
    rows = [row for row in rows if takes_part(row.mean)]
    panels = {"mean of layers that mix it": [*rows]}
    for place, layer in places.items():
        own = [row for row in rows if row.layer == layer]
        panels |= {f"{place}, {short(layer)}": own} if own else {}
    said = []
    with style(SMALL):
        figure = Figure(figsize=(1 + 2.2 * len(panels), 2.8), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        kinds = list(by_normalizer(rows))
        for axes, (title, own) in zip(grid[0], panels.items(), strict=True):
            for kind, of_kind in by_normalizer(own).items():
                colour, marker = LOOKS[kind]
                points = mean_by_epoch(of_kind)
                label = kind if axes.get_subplotspec().is_first_col() else None
                axes.plot([*points], [*points.values()], color=colour, marker=marker, markersize=3, label=label)
                said.append(f"{title}, {kind}: {points[min(points)]:.3g} to {points[max(points)]:.3g}")
            absent = [kind for kind in kinds if kind not in by_normalizer(own)]
            axes.set(title=f"{title}\n{', '.join(absent)} left out" if absent else title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(True)
        figure.legend(loc="outside upper center", ncols=len(LOOKS), frameon=False)
        title = "Mean ratio of each normalizer over training"
        return picture(figure, "epochs", title, f"{title}, from the first epoch to the last. {'; '.join(said)}.")


def mean_by_epoch(rows: Sequence[EpochMean]) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row.epoch, []).append(row.mean)
    return {epoch: float(np.mean(means)) for epoch, means in sorted(found.items())}


def sample_pictures(rows: Sequence[Extreme], images: Mapping[int, NDArray[np.uint8]]) -> list[Picture]:
    """A sheet for each layer: for each normalizer the samples with the lowest and with the highest ratios."""
    return [sample_picture([*own], images) for _, own in groupby(rows, lambda row: row.place)]


def sample_picture(rows: Sequence[Extreme], images: Mapping[int, NDArray[np.uint8]]) -> Picture:
    """The sheet of one layer."""
    place, layer = rows[0].place, rows[0].layer
    lines = {key: [*own] for key, own in groupby(rows, lambda row: (row.normalizer, row.end))}
    with style(SMALL):
        figure = Figure(figsize=(0.3 + 1.2 * EXTREMES, 1.45 * len(lines)))
        edges = {"left": 0.05, "right": 0.995, "bottom": 0.005, "top": 1 - 0.35 / (1.45 * len(lines)), "hspace": 0.45}
        grid = figure.subplots(len(lines), EXTREMES, squeeze=False, gridspec_kw=edges | {"wspace": 0.1})
        for line, ((kind, end), own) in zip(grid, lines.items(), strict=True):
            line[0].set_ylabel(f"{kind}, {end}")
            for axes, row in zip_longest(line, own):
                axes.set(xticks=[], yticks=[], frame_on=False)
                if row is not None:
                    axes.imshow(images[row.sample])
                    axes.set_title(f"{short(row.name, 16) or f'sample {row.sample}'}\n{row.ratio:.4g}", fontsize=7)
        firsts = (f"{kind}, {end}: {short(own[0].name)} {own[0].ratio:.4g}" for (kind, end), own in lines.items())
        title = f"Samples at either extreme of the {place} layer, {layer}"
        return picture(figure, f"samples_{place}", title, f"{title}. The utmost: {'; '.join(firsts)}.")


def by_normalizer(rows: Sequence[PerNormalizer]) -> dict[str, list[PerNormalizer]]:
    found: dict[str, list[PerNormalizer]] = {}
    for row in rows:
        found.setdefault(row.normalizer, []).append(row)
    return found


def short(name: str, limit: int = NAME) -> str:
    """A name in one line, of at most so many characters."""
    shown = in_one_line(name)
    return shown if len(shown) <= limit else f"{shown[: limit - 6]}...{shown[-3:]}"
