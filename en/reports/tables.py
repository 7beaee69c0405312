"""One table of measured runs with published figures beside them."""

import html
import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, ValidationError

from en.config.reading import flatten
from en.config.section import Count, Section, explain
from en.config.strict_yaml import read_tree
from en.config.text_file import read_text
from en.errors import UserError, in_one_line, shown
from en.runs.position import Position
from en.runs.summary import Name, Summary
from en.tasks import TASKS, Label

NOT_RECIPE = ("norm", "seed", "run_dir", "device")  # config keys in which runs of one recipe may differ
OPERATION = ("checkpoint", "distributed")  # sections that change no step
NOT_RECIPE_DATA = ("root", "loader", "workers", "timeout_s")
A_RUN = "a run with at least one finished epoch"
Row = dict[str, Any]


class StartRow(Section):
    """One start in a run's provenance.json: where it resumed, and the keys it changed, before and now."""

    model_config = ConfigDict(extra="ignore")

    resumed_at: Position = Position()
    changed: dict[Name, tuple[Any, Any]] = Field(default_factory=dict)


class Provenance(Section):
    """What a report needs of provenance.json."""

    starts: list[StartRow]


@dataclass(frozen=True)
class Measured:
    """One finished or unfinished run, from its folder.

    Attributes:
        path: the run folder.
        summary: summary.json.
        recipe: config.yaml without what may differ between runs that are compared.
        starts: of provenance.json; empty without one, None where it is damaged.
    """

    path: Path
    summary: Summary
    recipe: Row
    starts: list[StartRow] | None

    @property
    def group(self) -> str:
        """What runs have in common whose seeds are averaged."""
        own = (
            "task",
            "model",
            "norm",
            "norm_options",
            "dataset",
            "resolution",
            "eval_resolution",
            "epochs_done",
            "hardware",
        )
        return json.dumps([self.summary.model_dump(include=set(own)), self.recipe], sort_keys=True)


def write_report(runs: list[str], out: Path) -> str:
    """Writes a Markdown table of the runs to `out` and returns its text.

    Raises: UserError for a folder without a summary, and for one that cannot be written.
    """
    measured = [read_run(Path(run)) for run in runs]
    groups = defaultdict(list)
    for run in measured:
        groups[run.group].append(run)
    text = "\n".join(
        [*measured_table(list(groups.values())), "", *remarks(measured), "", *published_table(measured), ""]
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {out}: {getattr(error, 'strerror', error)}: expected a file that can be written"
        ) from error
    return text


def read_run(path: Path) -> Measured:
    """A run folder's summary and recipe. Raises UserError that names the file and the key."""
    summary, config = read_summary(path / "summary.json"), read_tree(path / "config.yaml", A_RUN)
    if not isinstance(config.get("data"), dict):
        raise UserError(
            f"{path / 'config.yaml'}: data={shown(config.get('data'))}: expected a section of keys and values"
        )
    recipe = {key: value for key, value in config.items() if key not in NOT_RECIPE}
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in NOT_RECIPE_DATA}
    return Measured(path, summary, recipe, read_starts(path / "provenance.json"))


def read_starts(path: Path) -> list[StartRow] | None:
    """The starts of a run; empty where the file is missing, None where it is damaged."""
    if not path.exists():
        return []
    try:
        return Provenance.model_validate_json(path.read_bytes()).starts
    except (OSError, ValidationError):
        return None


def read_summary(path: Path) -> Summary:
    try:
        return Summary.model_validate_json(read_text(path, A_RUN))
    except ValidationError as error:
        first, *others = error.errors()
        reason = f"expected JSON: {first['msg']}" if first["type"] == "json_invalid" else explain(first)
        raise UserError(f"{path}: {reason}{f' (and {len(others)} more)' if others else ''}") from error


def literal(text: object) -> str:
    """`text` as Markdown that shows it letter for letter, within a table's cell too."""
    escaped = html.escape(in_one_line(str(text)), quote=False)
    return re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", escaped)


def measured_table(groups: list[list[Measured]]) -> list[str]:
    """Markdown lines: a row for each normalizer and recipe, its seeds averaged."""
    labels = {name: label for runs in groups for name, label in labels_of(runs[0].summary).items()}
    headings = ["model", "normalizer", "data", "epochs", *map(heading, labels.values())]
    headings += ["n", "parameters", "GMACs (+ normalizers)", "images/s", "hardware"]
    lines = ["## Measured", "", *table_head(headings)]
    for runs in groups:
        first = runs[0].summary
        options = ", ".join(f"{key}={plain(value)}" for key, value in first.norm_options.items())
        done, planned = first.epochs_done, first.epochs
        cells = [
            first.model,
            first.norm + (f" ({options})" if options else ""),
            f"{first.dataset}, {first.resolution} px",
            f"{done}" if done == planned else f"{done} of {planned}",
            *(spread([run.summary.scores[name] for run in runs if name in run.summary.scores]) for name in labels),
            str(len(runs)),
            f"{first.params:,}",
            f"{first.gmacs:.3g} (+ {first.norm_gmacs:.2g})",
            mean_speed([run.summary.images_per_second for run in runs]),
            f"{first.hardware}, {first.world_size} ranks",
        ]
        lines.append(table_row(cells))
    return lines


def heading(label: Label) -> str:
    return f"{label.text} {label.unit}".strip()


def table_head(headings: list[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]


def labels_of(summary: Summary) -> dict[str, Label]:
    """The metrics of a run that a table shows."""
    task = TASKS.get(summary.task)
    return task.labels if task else {summary.score: Label(summary.score, "")}


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(map(literal, cells))} |"


def plain(value: object) -> str:
    """An option's value in words."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return value if isinstance(value, str) else shown(value)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation; the value alone when there is one, a dash when there is none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def remarks(measured: list[Measured]) -> list[str]:
    """Plain sentences on what the table means and what it does not."""
    lines = [
        "Scores are those of the last finished epoch on the whole evaluation set; mean ± sample standard deviation "
        "over n seeds. 1 MAC = 2 FLOPs; the normalizers' MACs are counted in evaluation. Images/s are of training.",
    ]
    lines += [line for run in measured for line in recipe_changes(run)]
    if len(measured) > 1 and (keys := differing_keys([run.recipe for run in measured])):
        differing = ", ".join(map(literal, keys))
        lines += [
            "",
            f"**Not one recipe**: the runs differ in {differing}, so their rows do not compare normalizers alone.",
        ]
    repeated = repeated_seeds(measured)
    if repeated:
        lines += [
            "",
            f"**Repeated seeds**: {', '.join(map(literal, repeated))} are runs of a seed that was counted before.",
        ]
    return lines


def recipe_changes(run: Measured) -> list[str]:
    """A paragraph for a run that was resumed with another recipe than it began with."""
    if run.starts is None:
        return ["", f"{literal(run.path)}: provenance.json is damaged, so whether it had one recipe is not known."]
    changes = []
    for start in run.starts:
        own = {key: values for key, values in start.changed.items() if is_recipe(key)}
        changes += [
            f"{key}={plain(now)} (was {plain(then)}) after {start.resumed_at.words()}"
            for key, (then, now) in own.items()
        ]
    return (
        ["", f"**Two recipes**: {literal(run.path)} was resumed with {literal(', '.join(changes))}."] if changes else []
    )


def is_recipe(key: str) -> bool:
    """Whether a dotted key is one in which runs of one recipe have to agree."""
    section, _, name = key.partition(".")
    return section not in (*NOT_RECIPE, *OPERATION) and (section != "data" or name not in NOT_RECIPE_DATA)


def differing_keys(recipes: list[Row]) -> list[str]:
    """Dotted keys in which recipes are not all alike."""
    flat = [flatten(recipe) for recipe in recipes]
    keys = sorted({key for recipe in flat for key in recipe})
    return [key for key in keys if len({json.dumps(recipe.get(key)) for recipe in flat}) > 1]


def repeated_seeds(measured: list[Measured]) -> list[str]:
    seen: set[tuple[str, int]] = set()
    repeated = []
    for run in measured:
        key = (run.group, run.summary.seed)
        if key in seen:
            repeated.append(str(run.path))
        seen.add(key)
    return repeated


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
    figures: list[Row]


@cache
def published(data: str = "imagenet") -> Setting:
    """The package's published figures on a data set."""
    return Setting.model_validate(
        yaml.safe_load((files("en.reports") / "published.yaml").read_text(encoding="utf-8"))[data]
    )


def published_table(measured: list[Measured]) -> list[str]:
    """Markdown lines: the published figures of the measured models, and whether the runs can be set against them."""
    models = {run.summary.model.removeprefix("timm/") for run in measured}
    setting = published()
    labels = TASKS[setting.task].labels
    rows = [row for row in setting.figures if row["model"] in models]
    lines = [f"## Published, {setting.title}", ""]
    if not rows:
        return [*lines, f"No published figure is on file for {', '.join(map(literal, sorted(models)))}."]
    headings = ["model", "normalizer", *map(heading, labels.values()), "parameters", "GMACs", "source", "status"]
    lines += table_head(headings)
    for row in rows:
        numbers = [f"{row[key]:,}" if key in row else "-" for key in (*labels, "params", "gmacs")]
        status = "**unverified**" if row["status"] == "unverified" else row["status"]
        lines.append(f"{table_row([row['model'], row['norm'], *numbers, row['source']])} {status} |")
    return [*lines, "", *(f"{reason}" for reason in incomparable(measured)), *gaps(measured, rows)]


def incomparable(measured: list[Measured]) -> list[str]:
    """A sentence for each way in which runs differ from the published setting."""
    reasons, setting = [], published()
    for run in measured:
        s, why = run.summary, []
        if s.task != setting.task:
            why.append(f"another task ({literal(s.task)})")
        if (s.classes, s.images) != (setting.classes, setting.images):
            why.append(f"other data ({literal(s.dataset)}, {s.classes} classes, {s.images:,} evaluation images)")
        if s.eval_resolution != setting.resolution:
            why.append(f"another resolution ({s.eval_resolution} pixels)")
        if s.epochs_done != s.epochs:
            why.append(f"unfinished ({s.epochs_done} of {s.epochs} epochs)")
        if why:
            names = f"{literal(s.model)} with {literal(s.norm)}"
            reasons.append(f"Runs of {names} cannot be compared with the published figures: {'; '.join(why)}.")
    return list(dict.fromkeys(reasons))


def gaps(measured: list[Measured], rows: list[Row]) -> list[str]:
    """For runs in the published setting, the distance to each verified figure."""
    lines = []
    for run in measured:
        for row in rows:
            same = (row["model"], row["norm"]) == (run.summary.model, run.summary.norm)
            if same and row["status"] == "published" and not incomparable([run]):
                score = run.summary.score
                gap, name = (
                    run.summary.scores[score] - row[score],
                    labels_of(run.summary).get(score, Label(score, "")).text,
                )
                lines.append(
                    f"Run {literal(run.path)}: {name} {gap:+.2f} against {row[score]} ({literal(row['source'])})."
                )
    return lines


def mean_speed(speeds: list[float | None]) -> str:
    """The mean of the runs' images/s; a run that was resumed after its last training step has none."""
    known = [speed for speed in speeds if speed is not None]
    return f"{statistics.mean(known):.0f}" if known else "-"
