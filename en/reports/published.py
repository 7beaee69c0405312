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
UNVERIFIED = "unverified"
CHANGES_NO_FIGURE = ("sync",)  # options of a normalizer with which it is still the one that was published


class Setting(Section):
    """Published figures on one data set, and what a run has to share with them to be set against them.

    Attributes:
        title: the data set and how it was scored.
        task: its key in TASKS; classes, images, resolution: of the evaluation.
        figures: rows with model, norm, metrics by name, params, gmacs, source and status.
    """

    title: Name
    task: Name
    classes: Count
    images: Count
    resolution: Count
    figures: list[Figure]

    @property
    def labels(self) -> dict[str, Label]:
        return TASKS[self.task].labels


@dataclass(frozen=True)
class Against:
    """A variant beside a published figure of its network and normalizer.

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
        """Whether the variant is judged by the figure: an unverified one never judges."""
        return not self.why and self.figure["status"] != UNVERIFIED


@cache
def published(data: str = "imagenet") -> Setting:
    """The package's published figures on a data set."""
    return Setting.model_validate(
        yaml.safe_load((files("en.reports") / "published.yaml").read_text(encoding="utf-8"))[data]
    )


def network(variant: Variant) -> str:
    """The network's name in published.yaml."""
    return variant.summary.model.removeprefix("timm/")


def find_figures(variant: Variant) -> list[Against]:
    """The published figures of a variant's network and normalizer."""
    key, why = (network(variant), variant.summary.norm), incomparable(variant)
    return [Against(variant, row, why) for row in published().figures if (row["model"], row["norm"]) == key]


def incomparable(variant: Variant) -> list[str]:
    """In which ways a variant differs from the published setting; recipes are not looked at."""
    s, setting, why = variant.summary, published(), []
    if s.task != setting.task:
        why.append(f"another task ({s.task})")
    if (s.classes, s.images) != (setting.classes, setting.images):
        why.append(f"other data ({s.dataset}, {s.classes} classes, {s.images:,} evaluation images)")
    if s.eval_resolution != setting.resolution:
        why.append(f"another resolution ({in_words(size_of(s.eval_resolution))} pixels)")
    if not variant.is_finished:
        why.append(f"unfinished ({s.epochs_done} of {s.epochs} epochs)")
    if options := own_options(variant):
        why.append(f"options of its own ({', '.join(options)})")
    return why


def own_options(variant: Variant) -> list[str]:
    """`key=value` for the options of normalizer and network that are not those of the published figure."""
    s = variant.summary
    defaults = norm_defaults(s.norm)
    published = defaults | AS_PUBLISHED.get(s.norm, {})
    own = [
        f"{key}={plain(value)}"
        for key, value in (defaults | s.norm_options).items()
        if key not in CHANGES_NO_FIGURE and (key not in published or published[key] != value)
    ]
    config = variant.runs[0].config.items()
    return own + [f"{key}={plain(value)}" for key, value in config if key.startswith("model.options.")]


def against_table(variants: Sequence[Variant]) -> Table:
    """A row for each variant and published figure of its network and normalizer."""
    labels = published().labels
    headings = [part for label in labels.values() for part in against_headings(label)]
    rows = [
        [
            words(found.variant.name),
            *(cell for metric in labels for cell in against_cells(found, metric)),
            words(found.status, strong=not found.judges),
            words(found.figure["source"]),
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
    return Table("against_published", title, ["variant", *headings, "status", "source"], rows, notes if rows else ())


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


def published_table(variants: Iterable[Variant]) -> Table:
    """The published figures of the measured networks."""
    models = {network(variant) for variant in variants}
    setting = published()
    headings = ["network", "normalizer", *map(heading, setting.labels.values()), "parameters", "GMACs"]
    rows = [
        [
            words(row["model"]),
            words(row["norm"]),
            *(number(row.get(key)) for key in (*setting.labels, "params", "gmacs")),
            words(row["status"], strong=row["status"] == UNVERIFIED),
            words(row["source"]),
        ]
        for row in setting.figures
        if row["model"] in models
    ]
    missing = sorted(models - {row["model"] for row in setting.figures})
    notes = [Note(f"No published figure is on file for {', '.join(missing)}.")] if missing else []
    return Table("published", f"Published, {setting.title}", [*headings, "status", "source"], rows, notes)
