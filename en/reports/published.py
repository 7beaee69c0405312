"""Published figures, and whether a variant can be set against them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from en.config.section import Count, Section
from en.norm.registry import AS_PUBLISHED, norm_defaults
from en.reports.tables import Cell, Note, Table, interval, mean, number, words
from en.reports.variants import Variant, heading, plain
from en.runs.summary import Name
from en.size import in_words, size_of
from en.tasks import TASKS, Label

Figure = dict[str, Any]
OPTIONS = "model.options."
UNVERIFIED = "unverified"
IMAGENET, CLAIMS = "imagenet", "claims"
CHANGES_NO_FIGURE = ("sync",)  # options of a normalizer with which it is still the one that was published


class Setting(Section):
    """Published figures on one data set, and what a run has to share with them to be set against them.

    Attributes:
        title: the data set and how it was scored.
        task: its key in TASKS; classes, images, resolution: of the evaluation; None for the latter: images have their
            own sizes.
        figures: rows with model, norm, metrics by name, params, gmacs, source and status, and the protocol where the
            task has several; options, those of `model.options` with which ours is that network; differs, in what it is
            another one. Without a model, which network it is of is not on file: it is shown and no run set against it.
    """

    title: Name
    task: Name
    classes: Count
    images: Count
    resolution: Count | None = None
    figures: list[Figure]

    @property
    def labels(self) -> dict[str, Label]:
        """Returns the labels of the metrics that some figure has."""
        labels = TASKS[self.task].labels.items()
        return {name: label for name, label in labels if any(name in figure for figure in self.figures)}


@dataclass(frozen=True)
class Against:
    """A variant beside a published figure of its network and normalizer, of its data set and task.

    Attributes:
        figure: of published.yaml.
        why: what keeps the two from being compared; empty where nothing does.
    """

    variant: Variant
    figure: Figure
    why: list[str]

    @property
    def status(self) -> str:
        if self.why:
            return f"not comparable: {'; '.join(self.why)}"
        return str(self.figure["status"])

    @property
    def judges(self) -> bool:
        """Tells whether the variant is judged by the figure: an unverified one never judges."""
        return not self.why and self.figure["status"] != UNVERIFIED


@cache
def settings() -> dict[str, Setting]:
    """The package's published figures by data set."""
    held = yaml.safe_load((files("en.reports") / "published.yaml").read_text(encoding="utf-8"))
    return {name: Setting.model_validate(value) for name, value in held.items() if name != CLAIMS}


def published(data: str = IMAGENET) -> Setting:
    """The package's published figures on a data set."""
    return settings()[data]


def data_of(variant: Variant) -> str:
    """The data set, a key of `settings`, whose figures a variant is set against."""
    named = str(variant.runs[0].config.get("task.data_set"))
    return named if named in settings() else IMAGENET


def by_data(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Variants by the data set whose figures they are set against."""
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        found.setdefault(data_of(variant), []).append(variant)
    return found


def network(variant: Variant) -> str:
    """The network's name in published.yaml."""
    return variant.summary.model.removeprefix("timm/")


def find_figures(variant: Variant) -> list[Against]:
    """The published figures of a variant's network and normalizer."""
    key, why = (network(variant), variant.summary.norm), incomparable(variant)
    figures = published(data_of(variant)).figures
    return [
        Against(variant, row, why + another_protocol(variant, row) + another_network(variant, row))
        for row in figures
        if (row.get("model"), row["norm"]) == key
    ]


def another_protocol(variant: Variant, figure: Figure) -> list[str]:
    """Says that a variant was scored by another protocol than a figure, in a list that is empty where it was not."""
    own = variant.runs[0].config.get("task.protocol")
    return [] if own == figure.get("protocol") else [f"another protocol ({own})"]


def another_network(variant: Variant, figure: Figure) -> list[str]:
    """Says in what the network of a figure is another one than a variant's of the same name, in the same way."""
    given = {
        key.removeprefix(OPTIONS): value
        for key, value in variant.runs[0].config.items()
        if key.startswith(OPTIONS) and value is not None
    }
    theirs = figure.get("options", {})
    other = [f"{key}={plain(given.get(key, 'default'))}" for key in theirs if given.get(key) != theirs[key]]
    other += [f"{key}={plain(value)}" for key, value in given.items() if key not in theirs]
    differs = figure.get("differs")
    return [f"another network ({'; '.join([*other, *([differs] if differs else [])])})"] if other or differs else []


def incomparable(variant: Variant) -> list[str]:
    """In which ways a variant differs from the published setting; recipes are not looked at."""
    s, setting, why = variant.summary, published(data_of(variant)), []
    if s.task != setting.task:
        why.append(f"another task ({s.task})")
    if (s.classes, s.images) != (setting.classes, setting.images):
        why.append(f"other data ({s.dataset}, {s.classes} classes, {s.images:,} evaluation images)")
    if setting.resolution is not None and s.eval_resolution != setting.resolution:
        why.append(f"another resolution ({in_words(size_of(s.eval_resolution))} pixels)")
    if setting.resolution is None and (size := variant.runs[0].config.get("data.eval_resolution")) is not None:
        why.append(f"images and labels of another size (data.eval_resolution={plain(size)})")
    if not variant.is_finished:
        why.append(f"unfinished ({s.epochs_done} of {s.epochs} epochs)")
    if options := own_options(variant):
        why.append(f"options of its own ({', '.join(options)})")
    return why


def own_options(variant: Variant) -> list[str]:
    """`key=value` for the options of the normalizer that are not those of the published figure."""
    s = variant.summary
    defaults = norm_defaults(s.norm)
    published = defaults | AS_PUBLISHED.get(s.norm, {})
    return [
        f"{key}={plain(value)}"
        for key, value in (defaults | s.norm_options).items()
        if key not in CHANGES_NO_FIGURE and (key not in published or published[key] != value)
    ]


def published_tables(variants: Sequence[Variant]) -> list[Table]:
    """For each data set, what was measured against published figures, and these; none that would be empty."""
    made = (table(own, data) for data, own in by_data(variants).items() for table in (against_table, published_table))
    return [table for table in made if table.rows or table.notes]


def named(table: str, data: str) -> str:
    return table if data == IMAGENET else f"{table}_{data}"


def against_table(variants: Sequence[Variant], data: str) -> Table:
    """A row for each variant and published figure of its network and normalizer."""
    labels = published(data).labels
    headings = [part for label in labels.values() for part in against_headings(label)]
    rows = [
        [
            words(found.variant.name),
            *(cell for metric in labels for cell in against_cells(found, metric)),
            words(found.status, strong=not found.judges),
            words(source_of(found.figure)),
        ]
        for variant in variants
        for found in find_figures(variant)
    ]
    notes = [
        Note(
            "Difference: measured less published. Its interval is that of the measured mean; the published figure is "
            "taken as exact, because its spread over seeds is not on file. Recipes may differ from the source's. No "
            "run is judged by an unverified figure, nor by one that it cannot be compared with."
        )
    ]
    title = "Measured against published"
    return Table(
        named("against_published", data), title, ["variant", *headings, "status", "source"], rows, notes if rows else ()
    )


def against_headings(label: Label) -> list[str]:
    return [
        heading(label),
        f"published {label.text}",
        f"difference of {label.text}",
        f"its 95 % interval, {label.text}",
    ]


def against_cells(found: Against, metric: str) -> list[Cell]:
    """A metric as measured and as published; where the figure judges, the difference and its interval."""
    own, figure = found.variant.estimate(metric), found.figure.get(metric)
    ends: list[float | None] = [None, None, None]
    if found.judges and own and figure is not None:
        ends = [None if value is None else value - figure for value in (own.mean, own.low, own.high)]
    gap, low, high = ends
    return [mean(own), number(figure), number(gap, "+.2f"), interval(low, high, "+.2f")]


def source_of(figure: Figure) -> str:
    protocol = figure.get("protocol")
    return f"{figure['source']}; protocol {protocol}" if protocol else str(figure["source"])


def published_table(variants: Iterable[Variant], data: str) -> Table:
    """The published figures of the measured networks, and those of networks that are not on file."""
    models = {network(variant) for variant in variants}
    setting = published(data)
    headings = ["network", "normalizer", *map(heading, setting.labels.values()), "parameters", "GMACs"]
    rows = [
        [
            words(row.get("model", "not on file")),
            words(row["norm"]),
            *(number(row.get(key)) for key in (*setting.labels, "params", "gmacs")),
            words(row["status"], strong=row["status"] == UNVERIFIED),
            words(source_of(row)),
        ]
        for row in setting.figures
        if row.get("model") in {*models, None}
    ]
    missing = sorted(models - {row.get("model") for row in setting.figures})
    notes = [Note(f"No published figure is on file for {', '.join(missing)}.")] if missing else []
    return Table(named("published", data), f"Published, {setting.title}", [*headings, "status", "source"], rows, notes)
