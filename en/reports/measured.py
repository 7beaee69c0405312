"""The scores of every variant, and what keeps them from being what they seem."""

from collections.abc import Iterable, Sequence

from en.config.meaning import decides
from en.config.strict_yaml import Tree
from en.means import Means
from en.reports.runs import Run, frozen
from en.reports.tables import LEAST, NOTHING, Cell, Note, Table, ends, mean, number, words
from en.reports.variants import Variant, heading, labels_of, plain, resolution
from en.runs.summary import Summary

FOLDED = ("epochs", "network", "data", "differs from most runs in", "hardware")


def measured_table(variants: Sequence[Variant]) -> Table:
    """A row for each variant, its seeds averaged."""
    labels = {name: label for variant in variants for name, label in labels_of(variant.summary).items()}
    scores = [part for label in labels.values() for part in (heading(label), f"{label.text} 95 % interval")]
    headings = ["variant", "n", *scores, "epochs", "network", "data", "differs from most runs in", "hardware"]
    rows = []
    for variant in variants:
        s, found = variant.summary, [(variant.estimate(name), label.unit) for name, label in labels.items()]
        cells = [cell for each, unit in found for cell in (mean(each), ends(each, unit))]
        cells += [epochs(s), words(s.model), words(f"{s.dataset}, {resolution(s)}")]
        marks = words("; ".join(variant.marks) or NOTHING, strong=bool(variant.marks))
        rows.append([words(variant.name), number(len(variant.counted)), *cells, marks, words(variant.hardware)])
    notes = [
        Note(
            "Scores are those of the last finished epoch on the whole evaluation set: mean ± sample standard deviation "
            f"over n seeds, and from {LEAST} of them on the 95 % interval of the mean by Student's t with n - 1 "
            "degrees of freedom, as far as it lies within 0 and 100 %."
        ),
    ]
    return Table("measured", "Scores over seeds", headings, rows, notes, folded=FOLDED)


def epochs(s: Summary) -> Cell:
    done = s.epochs_done
    return Cell(f"{done:g}" if done == s.epochs else f"{done:g} of {s.epochs:g}", {"": done})


def remarks(runs: Sequence[Run], variants: Sequence[Variant]) -> list[Note]:
    """Lists caveats: unfinished runs, mixed recipes, repeated seeds."""
    notes = [Note(text, "Not finished") for text in unfinished(runs)]
    notes += [note for run in runs for note in recipe_changes(run)]
    keys = differing_keys([run.recipe for run in runs if run.summary])
    if keys:
        text = f"the runs differ in {', '.join(keys)}, so their rows do not compare normalizers alone."
        notes.append(Note(text, "Not one recipe"))
    repeated = [str(run.path) for variant in variants for run in variant.runs if run not in variant.counted.values()]
    if repeated:
        text = f"{', '.join(repeated)} are runs of a seed that was counted before, and are not counted again."
        notes.append(Note(text, "Repeated seeds"))
    return notes


def unfinished(runs: Iterable[Run]) -> list[str]:
    """A sentence for each run that did not come to its end."""
    return [f"{run.path}: {run.outcome}." for run in runs if not run.is_finished]


def recipe_changes(run: Run) -> list[Note]:
    """A note for a run that was resumed with another recipe than it began with."""
    if run.starts is None:
        return [Note(f"{run.path}: provenance.json is damaged, so whether it had one recipe is not known.")]
    changes = [
        f"{key}={plain(now)} (was {plain(then)}) after {start.resumed_at.words()}"
        for start in run.starts
        for key, (then, now) in start.changed.items()
        if decides(key, Means.RECIPE)
    ]
    return [Note(f"{run.path} was resumed with {', '.join(changes)}.", "Two recipes")] if changes else []


def differing_keys(recipes: Sequence[Tree]) -> list[str]:
    """Dotted keys in which recipes are not all alike."""
    keys = sorted({key for recipe in recipes for key in recipe})
    return [key for key in keys if len({frozen(recipe.get(key)) for recipe in recipes}) > 1]
