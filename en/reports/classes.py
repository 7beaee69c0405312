"""Tables of what runs counted class by class: worst and rare classes, confusions, and samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from en.errors import UserError, in_one_line, warn
from en.reports.runs import Run
from en.reports.statistics import Estimate, estimate
from en.reports.tables import Cell, Note, Table, mean, number, words
from en.reports.variants import Peers, Variant, summary_of
from en.runs.by_class import FOLDER, LAST, ByClass, Entries, percent, read_by_class, worst_first

MANY, FEW = 100, 20  # training images of a class: more than MANY, fewer than FEW (Liu et al., CVPR 2019)
SHOTS = (f"many (> {MANY})", f"medium ({FEW} to {MANY})", f"few (< {FEW})")
MOST_VARIANTS = 8  # in tables of classes, and with pictures
MOST_ROWS = 200  # of classes on a page
MOST_CONFUSED = 10  # pairs of classes of a variant
MOST_NAMED = 5  # classes in a sentence
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Counted:
    """A variant whose runs say what they counted.

    Attributes:
        peers, variant: it, and whom it stands beside.
        runs: those that say it, not none, with what each of them says.
    """

    peers: Peers
    variant: Variant
    runs: list[tuple[Run, ByClass]]

    @property
    def first(self) -> ByClass:
        """Returns what the first run says: which classes there are and how much is of each is the same for all."""
        return self.runs[0][1]

    @property
    def judged_by(self) -> str:
        return "top-1" if self.first.overlap is None else "IoU"

    def scores(self) -> list[Scores]:
        """Returns the classes' scores, %, by run."""
        return [found.scores for _, found in self.runs]

    def of_class(self, values: Sequence[Scores], target: int) -> Estimate | None:
        """A class's values over the runs."""
        return estimate([float(each[target]) for each in values if math.isfinite(each[target])])

    def pooled(self) -> ByClass | None:
        """Adds up what all runs counted; None where pairs of classes were not."""
        tables = [found.confusion for _, found in self.runs if found.confusion is not None]
        if not tables:
            return None
        return self.first.model_copy(update={"counts": {"confusion": Entries.of(np.sum(tables, axis=0))}})


def find_counted(peers: Peers) -> list[Counted]:
    """The variants with counts of their last evaluation; those of another one are left out with a warning."""
    found: list[Counted] = []
    classes: list[str] = []
    for variant in peers.variants:
        runs = [(run, said) for run in variant.counted.values() if (said := last_of(run)) is not None]
        classes = classes or (runs[0][1].classes if runs else [])
        for run in [run for run, said in runs if said.classes != classes]:
            warn(f"{run.path / FOLDER}: expected the classes of the other runs on this data set: left out")
        if same := [(run, said) for run, said in runs if said.classes == classes]:
            found.append(Counted(peers, variant, same))
    return found


def last_of(run: Run) -> ByClass | None:
    """Reads what a run's last evaluation counted, by summary.json; None, with a warning, if damaged or of another."""
    folder = run.path / FOLDER / LAST
    try:
        found = read_by_class(folder)
    except UserError as error:
        warn(f"{error}: left out")
        return None
    done = summary_of(run).epochs_done
    if found is not None and found.epoch != done:
        warn(f"{folder}: of epoch {found.epoch:g}: expected epoch {done:g}, the last one by summary.json: left out")
        return None
    return found if found is not None and found.says_something else None


def class_tables(found: Sequence[Counted]) -> list[Table]:
    """Tables of variants that were scored on the same images."""
    tables = [summary_table(found), by_class_table(found[:MOST_VARIANTS]), confused_table(found[:MOST_VARIANTS])]
    return [table for table in tables if table.rows]


def summary_table(found: Sequence[Counted]) -> Table:
    """A row for each variant: the mean over classes, the worst ones, those of many, of some and of few images."""
    first, peers = found[0].first, found[0].peers
    what, total = found[0].judged_by, len(first.classes)
    by_shots = shots(first)
    calibrated = any("ece" in summary_of(run).scores for each in found for run, _ in each.runs)
    rows = []
    for each in found:
        scores = each.scores()
        present = int(np.isfinite(scores[0]).sum())
        row = [words(each.variant.name), number(len(scores)), over(scores, mean_of), words(f"{present} of {total}")]
        row += [over(scores, worst_decile), worst_class(each)]
        row += [over([part[group] for part in scores], mean_of) for group in by_shots.values()]
        row += [mean(each.variant.estimate("ece"))] if calibrated else []
        rows.append(row)
    headings = ["variant", "n", f"mean {what} %", "of classes", "worst tenth %", "worst class"]
    headings += [f"{name} %" for name in by_shots] + (["ECE %"] if calibrated else [])
    title = peers.titled("Means over classes, and the worst of them")
    return Table(peers.file("classes"), title, headings, rows, summary_notes(found, by_shots, calibrated))


def summary_notes(found: Sequence[Counted], by_shots: dict[str, NDArray[np.bool_]], calibrated: bool) -> list[Note]:
    """Says how the columns were taken, and which classes are in none of them."""
    first, what = found[0].first, found[0].judged_by
    notes = [
        Note(
            f"Each class counts alike, whatever its {first.counted}: mean {what} over the classes that are there, over "
            "the tenth of them with the lowest (rounded up), and the lowest, in the last evaluation of each run; ± is "
            "the sample standard deviation over n runs."
        )
    ]
    absent = [first.classes[n] for n in np.flatnonzero(~np.isfinite(first.scores)).tolist()]
    if absent:
        where = "labelled" if first.overlap is None else "labelled or predicted"
        named = ", ".join(map(in_one_line, absent[:MOST_NAMED])) + (", ..." if len(absent) > MOST_NAMED else "")
        present = len(first.classes) - len(absent)
        notes.append(Note(f"Means are over {present} of {len(first.classes)} classes: not {where}: {named}."))
    if by_shots:
        sizes = ", ".join(f"{int(group.sum())} {name}" for name, group in by_shots.items())
        notes.append(Note(f"Classes by their training images: {sizes}; the mean is over classes, not images."))
    if calibrated:
        notes.append(
            Note(
                "ECE is the expected calibration error in 15 bins of one width: how far the share of recognized images "
                "of a bin is from their mean confidence, the mean over images."
            )
        )
    return notes


def shots(first: ByClass) -> dict[str, NDArray[np.bool_]]:
    """Groups classes of many, some and few training images, by name; empty where they are all in one such group."""
    if first.trained is None:
        return {}
    images = np.array(first.trained)
    groups = zip(SHOTS, (images > MANY, (images >= FEW) & (images <= MANY), images < FEW), strict=True)
    there = {name: group for name, group in groups if np.isfinite(first.scores[group]).any()}
    return there if len(there) > 1 else {}


def over(scores: Sequence[Scores], take: Callable[[Scores], float]) -> Cell:
    """Estimates what is taken of the classes' scores, over runs."""
    return mean(estimate([take(each) for each in scores]))


def mean_of(scores: Scores) -> float:
    """The mean over the classes that have a score."""
    return float(np.nanmean(scores))


def worst_decile(scores: Scores) -> float:
    """The mean of the tenth of the classes with the lowest scores, at least one."""
    there = np.sort(scores[np.isfinite(scores)])
    return float(there[: math.ceil(len(there) / 10)].mean())


def class_means(each: Counted) -> Scores:
    """Computes each class's mean score over the runs; not a number where no run has one."""
    table = np.array(each.scores())
    there = np.isfinite(table)
    found = np.full(table.shape[1], np.nan)
    np.divide(np.where(there, table, 0).sum(0), there.sum(0), out=found, where=there.any(0))
    return found


def worst_class(each: Counted) -> Cell:
    means = class_means(each)
    worst = worst_first(means)[0]
    return words(f"{each.first.classes[worst]}, {means[worst]:.2f}")


def worst_classes(found: Sequence[Counted]) -> list[int]:
    """The numbers of the classes, those with the lowest means over the variants first."""
    means = np.array([class_means(each) for each in found])
    there = np.isfinite(means)
    sums = np.where(there, means, 0).sum(0)
    return worst_first(np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan))


def by_class_table(found: Sequence[Counted]) -> Table:
    """A row for each class, those with the lowest means first: how much there is of it, and each variant's scores."""
    first, peers, what = found[0].first, found[0].peers, found[0].judged_by
    share = percent(first.labelled, np.full(len(first.labelled), first.labelled.sum()))
    rows = []
    for n in worst_classes(found):
        row = [words(first.classes[n]), *([] if first.trained is None else [number(first.trained[n])])]
        row += [number(int(first.labelled[n])), number(float(share[n]), ".2f")]
        for each in found:
            row.append(mean(each.of_class(each.scores(), n)))
            if first.overlap is not None:
                row.append(mean(each.of_class([said.accuracy for _, said in each.runs], n)))
        rows.append(row)
    kinds = [what] if first.overlap is None else [what, "accuracy"]
    headings = ["class", *([] if first.trained is None else ["training images"]), first.counted, "share %"]
    headings += [f"{kind} % of {each.variant.name}" for each in found for kind in kinds]
    notes = [
        Note(f"The classes with the lowest {what} stand first; {first.counted} and share are of the evaluation set.")
    ]
    if len(rows) > MOST_ROWS:
        notes.append(Note(f"The other {len(rows) - MOST_ROWS} classes are in tables/{peers.file('by_class')}.csv."))
    if len(found) < len(peers.variants):
        notes.append(Note(f"Of {len(peers.variants)} variants, the first {len(found)} that say something by class."))
    return Table(peers.file("by_class"), peers.titled("Class by class"), headings, rows, notes, MOST_ROWS)


def confused_table(found: Sequence[Counted]) -> Table:
    """The pairs of classes that each variant confuses most."""
    peers, counted, rows = found[0].peers, found[0].first.counted, []
    for each in found:
        pooled = each.pooled()
        for pair in pooled.confused(MOST_CONFUSED) if pooled else []:
            target, predicted = (pooled.classes[n] for n in (pair.target, pair.predicted)) if pooled else ("", "")
            amount = pair.amount / len(each.runs)
            rows.append([words(each.variant.name), words(target), words(predicted), number(amount, ",.0f"),
                         number(100 * pair.share, ".2f")])  # fmt: skip
    headings = ["variant", "is", "was taken for", f"{counted} a run", "% of the class"]
    notes = [Note(f"The {MOST_CONFUSED} pairs of the most {counted}, over all runs of a variant.")]
    return Table(peers.file("confused"), peers.titled("What is confused most"), headings, rows, notes if rows else ())
