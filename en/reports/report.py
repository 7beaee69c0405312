"""A report: what is said of some runs, in sections, from which every file of it is written."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from en.reports.chance import chance, chance_notes
from en.reports.charts import Line
from en.reports.class_figures import confusion_pictures, samples, score_pictures
from en.reports.classes import class_tables, find_counted
from en.reports.comparisons import cost_table, difference_table
from en.reports.curves import compute_picture, curve_picture, lines
from en.reports.figures import Photo, Picture
from en.reports.headline import headlines
from en.reports.labels import label_pictures, label_tables
from en.reports.measured import measured_table, remarks
from en.reports.provenance import provenance_table
from en.reports.published import published_tables
from en.reports.ratios.in_report import find_ratios, ratio_pictures, ratio_tables
from en.reports.ratios.logged import logged_pictures
from en.reports.recipe import recipe_line, recipe_table
from en.reports.runs import Run, find_runs, read_run
from en.reports.tables import Note, Table
from en.reports.variants import Peers, Variant, find_peers, find_variants, heading
from en.runs.row import Row


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name, title: of its heading.
        notes: sentences before the tables.
        tables, pictures, photos: what it shows.
        is_folded: whether a page shows it on demand.
    """

    name: str
    title: str
    notes: Sequence[Note] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    photos: Sequence[Photo] = ()
    is_folded: bool = False

    @property
    def is_empty(self) -> bool:
        says = self.notes or any(table.rows or table.notes for table in self.tables)
        return not (says or self.pictures or self.photos)


@dataclass(frozen=True)
class Report:
    """All that is said of the runs.

    Attributes:
        title, lead: what it is of.
        headlines: the answer: which variant leads.
        recipe: what the runs share, in a line; "" without a run that has a result.
        sections: in the order in which they are read.
        runs, variants: what it was made from.
        curves: the lines of its pictures, by name.
    """

    title: str
    lead: str
    headlines: Sequence[str]
    recipe: str
    sections: Sequence[Section]
    runs: Sequence[Run]
    variants: Sequence[Variant]
    curves: dict[str, list[Line]]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def photos(self) -> list[Photo]:
        return [photo for section in self.sections for photo in section.photos]

    def data(self) -> dict[str, Any]:
        """The same for machines: every number in full precision."""
        return {
            "headlines": [*self.headlines],
            "recipe": self.recipe,
            "runs": [run_data(run) for run in self.runs],
            "tables": {table.name: table.records for table in self.tables},
            "notes": {
                section.name: [note.text for note in (*section.notes, *under(section.tables))]
                for section in self.sections
            },
            "curves": {name: [line_data(line) for line in found] for name, found in self.curves.items()},
        }


def make_report(paths: Iterable[str]) -> Report:
    """The report of the run folders among the paths and in them. Raises UserError that names what cannot be read."""
    runs = [read_run(path) for path in find_runs(map(Path, paths))]
    every = find_peers(find_variants(runs))
    variants = [variant for peers in every for variant in peers.variants]
    ratios = find_ratios(runs)
    curves: dict[str, list[Line]] = {}
    label_curves = [each for peers in every for each in label_pictures(peers, curves)]
    published = published_tables(variants)
    has_figures = any(table.rows for table in published)
    noted = [*remarks(runs, variants), *([] if has_figures else under(published))]
    differences = [table for peers in every if (table := difference_table(peers))]
    sections = [
        Section("measured", "Measured", noted, measured(every)),
        Section("curves", "Curves", (), (), [each for peers in every for each in pictures(peers, curves)]),
        Section("differences", "Differences between variants", (), differences),
        Section("published", "Published figures", (), published if has_figures else ()),
        classes_section(every),
        Section("cost", "Cost", (), [cost_table(peers) for peers in every]),
        Section("labels", "Noisy labels", (), label_tables(runs, variants), label_curves),
        Section("ratios", "Ratios", (), ratio_tables(ratios), logged_pictures(every), ratio_pictures(ratios)),
        Section("recipe", "Recipe", (), [recipe_table(variants)] if variants else [], is_folded=True),
        Section("runs", "Runs", (), [provenance_table(runs, variants)]),
    ]
    shown = [part for part in sections if not part.is_empty]
    return Report(title(variants), lead(runs), headlines(every), recipe_line(variants), shown, runs, variants, curves)


def measured(every: Sequence[Peers]) -> list[Table]:
    """The table of all scores, with what chance would have."""
    variants = [variant for peers in every for variant in peers.variants]
    if not variants:
        return []
    table = measured_table(variants)
    return [replace(table, notes=[*chance_notes(every), *table.notes])]


def classes_section(every: Sequence[Peers]) -> Section:
    """Shows what was counted class by class, of all variants that have such counts."""
    found = [counted for peers in every if (counted := find_counted(peers))]
    tables = [table for counted in found for table in class_tables(counted)]
    drawn = (score_pictures, confusion_pictures)
    pictures = [picture for counted in found for draw in drawn for picture in draw(counted)]
    return Section("classes", "Classes", (), tables, pictures, [photo for each in found for photo in samples(each)])


def under(tables: Iterable[Table]) -> list[Note]:
    """The notes of tables."""
    return [note for table in tables for note in table.notes]


def title(variants: Sequence[Variant]) -> str:
    names = dict.fromkeys(variant.summary.dataset for variant in variants)
    return f"Normalizers compared on {', '.join(names)}" if names else "Runs without a result"


def lead(runs: Sequence[Run]) -> str:
    """Says how many runs there are, and how many of them are finished."""
    finished = sum(run.is_finished for run in runs)
    none = sum(run.summary is None for run in runs)
    return (
        f"{len(runs)} runs: {finished} finished, {len(runs) - finished - none} unfinished, "
        f"{none} without a finished epoch."
    )


def pictures(peers: Peers, curves: dict[str, list[Line]]) -> list[Picture]:
    """The figures of variants that can be set against each other; their lines are added to `curves`."""

    def train_loss(row: Row) -> float:
        return row.train_loss

    def score_of(row: Row) -> float:
        return row.scores.values.get(peers.score, math.nan)

    found = []
    score = heading(peers.label)
    by_chance = chance(peers.variants[0].summary, peers.score)
    level = None if by_chance is None else (by_chance, "chance")
    for name, number, said in (("score", score_of, score), ("loss", train_loss, "training loss")):
        drawn = lines(peers, number)
        if drawn:
            is_loss, name = name == "loss", peers.file(name)
            curves[name] = drawn
            title = peers.titled(f"{capital(said)} after each epoch")
            found.append(curve_picture(peers, drawn, name, title, said, is_loss, None if is_loss else level))
    if len(peers.finished) > 1:
        title = peers.titled(f"{capital(score)} against compute")
        found.append(compute_picture(peers, peers.file("compute"), title, score))
    return found


def capital(text: str) -> str:
    """The text as a title begins; a name such as mIoU stays as it is."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def run_data(run: Run) -> dict[str, Any]:
    """A run for machines."""
    return {
        "path": str(run.path),
        "status": run.status,
        "error": run.error,
        "seed": run.seed,
        "hours": run.hours,
        "scores": run.summary.scores if run.summary else None,
        "config": run.config,
    }


def line_data(line: Line) -> dict[str, Any]:
    points = [
        {"epoch": epoch, "mean": point.mean, "sd": point.sd, "n": point.n} for epoch, point in line.points.items()
    ]
    return {"variant": line.name, "points": points, "seeds": line.seeds}
