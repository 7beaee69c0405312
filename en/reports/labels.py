"""Noisy labels: what was given for what, the scores last and best, and what became of the samples."""

from collections.abc import Callable, Sequence

from en.reports.charts import Line
from en.reports.curves import curve_picture, lines
from en.reports.figures import Picture
from en.reports.runs import SHORT, Run
from en.reports.statistics import estimate
from en.reports.tables import Cell, Note, Table, mean, number, words
from en.reports.variants import Peers, Variant, heading, label, plain, summary_of
from en.runs.read import LabelFacts
from en.runs.row import Row

SHOWN = 20  # classes at most whose counts are a table, and pairs that are listed of more
FIGURES = {  # by outcome: its column and its curve
    "wrong_labels_true": "wrong labels, true class predicted %",
    "wrong_labels_given": "wrong labels, memorized %",
    "wrong_labels_other": "wrong labels, other class %",
    "right_labels_true": "right labels, true class predicted %",
}
HOW = Note(
    "Shares are of the training steps' own predictions in the last epoch: of augmented images, in training mode, each "
    "as it passes, before the step that learns from it. Memorized: the class that the sample is wrongly given."
)
BEST = Note("The best epoch was chosen on the test set, so that its score flatters.", "Best")


def facts_of(run: Run) -> LabelFacts | None:
    """The labels that a run was trained with last; None where they were the set's own."""
    return run.starts[-1].labels if run.starts else None


def label_tables(runs: Sequence[Run], variants: Sequence[Variant]) -> list[Table]:
    """Tables what the labels were and what came of them; nothing of runs that were trained with their set's own."""
    found: dict[str, tuple[str, LabelFacts]] = {}
    for run in runs:
        if facts := facts_of(run):
            found.setdefault(facts.digest, (plain(run.config.get("data.labels")), facts))
    noisy = [variant for variant in variants if facts_of(variant.runs[0])]
    counts = [counts_table(*each, at if len(found) > 1 else 0) for at, each in enumerate(found.values(), 1)]
    return [*([outcome_table(noisy)] if noisy else []), *([origin_table([*found.values()])] if found else []), *counts]


def outcome_table(variants: Sequence[Variant]) -> Table:
    """A row for each variant: its scores last and best, and the shares of the last epoch."""
    labels = dict.fromkeys(heading(label(v.summary.task, v.summary.score)) for v in variants)
    score = next(iter(labels)) if len(labels) == 1 else "score"
    headings = ["variant", "n", f"last {score}", f"best {score} (chosen on the test set)", *FIGURES.values()]
    rows = [
        [words(variant.name), number(len(variant.counted)), mean(variant.score), best(variant)]
        + [mean(estimate(last_shares(variant, outcome))) for outcome in FIGURES]
        for variant in variants
    ]
    return Table("noisy_labels", "Noisy labels: scores and memorization", headings, rows, [BEST, HOW])


def best(variant: Variant) -> Cell:
    return mean(estimate([summary_of(run).best_score for run in variant.counted.values()]))


def last_shares(variant: Variant, outcome: str) -> list[float]:
    """An outcome in the last epoch of each counted run, %."""
    last = [run.log[max(run.log)] for run in variant.counted.values() if run.log]
    return [100 * row.outcomes[outcome] for row in last if outcome in row.outcomes]


def origin_table(found: Sequence[tuple[str, LabelFacts]]) -> Table:
    """Tables how the labels came about, and how many of them are wrong."""
    rows = [
        [
            words(name),
            words(", ".join(f"{key} {plain(value)}" for key, value in facts.origin.items())),
            number(facts.samples),
            number(facts.wrong),
            number(100 * facts.wrong / max(1, facts.samples), ".2f"),
            words(facts.digest[:SHORT]),
        ]
        for name, facts in found
    ]
    return Table("labels", "Labels", ["labels", "origin", "samples", "wrong", "wrong %", "digest"], rows)


def counts_table(name: str, facts: LabelFacts, place: int) -> Table:
    """Tables how many samples of a class were given which, or of many classes the most frequent pairs of two."""
    file, title = f"label_counts_{place}" if place else "label_counts", f"Samples by clean and given class, {name}"
    if facts.classes > SHOWN:
        pairs = [pair for pair in facts.counts if pair[0] != pair[1]][:SHOWN]
        rows = [[words(own), words(other), number(count)] for own, other, count in pairs]
        return Table(file, title, ["clean", "given", "samples"], rows, [Note("Of two classes, the most frequent.")])
    classes = sorted({name for own, other, _ in facts.counts for name in (own, other)})
    by_pair = {(own, other): count for own, other, count in facts.counts}
    rows = [[words(own), *(number(by_pair.get((own, other), 0)) for other in classes)] for own in classes]
    return Table(file, title, ["clean / given", *classes], rows)


def label_pictures(peers: Peers, curves: dict[str, list[Line]]) -> list[Picture]:
    """A figure for each outcome that the logs tell; their lines are added to `curves`."""
    found = []
    for outcome, said in FIGURES.items():
        if drawn := lines(peers, share(outcome)):
            name = peers.file(outcome)
            curves[name] = drawn
            title = peers.titled(f"{said[:1].upper()}{said[1:].removesuffix(' %')}, in each epoch of training")
            found.append(curve_picture(peers, drawn, name, title, said))
    return found


def share(outcome: str) -> Callable[[Row], float]:
    """Reads an outcome of a row, %; NaN where it tells none."""
    return lambda row: 100 * row.outcomes.get(outcome, float("nan"))
