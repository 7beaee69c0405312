"""Where figures come from: what was run, by whom it was asked for, on what, and how long it took."""

from collections.abc import Sequence

from en.reports.runs import Run
from en.reports.tables import NOTHING, Cell, Note, Table, number, words
from en.reports.variants import Variant, differences, most_common, own_config

SHORT = 12  # digits of a commit


def provenance_table(runs: Sequence[Run], variants: Sequence[Variant]) -> Table:
    """Tables where the figures come from: a row for each run, also of those without figures."""
    names = {run.path: variant.name for variant in variants for run in variant.runs}
    base = most_common([own_config(run) for run in runs if run.config])
    rows = [
        [
            words(run.path),
            words(run.outcome, strong=not run.is_finished),
            words(names.get(run.path, NOTHING)),
            number(run.seed, "d"),
            run_score(run),
            words((", ".join(differences(run, base)) or "nothing") if run.config else NOTHING),
            words(last_start(run, "command")),
            words(commit(run)),
            words(last_start(run, "hardware")),
            number(run.hours, ".3g"),
            words(last_start(run, "time", first=True)),
            number(None if run.starts is None else len(run.starts)),
        ]
        for run in runs
    ]
    headings = ["run", "status", "variant", "seed", "score", "configuration differs from most runs in", "command"]
    headings += ["commit", "hardware", "hours", "begun", "starts"]
    notes = [
        Note(
            "Command, commit and hardware are those of the last start; hours are of training by the log, without "
            "evaluation and without epochs that a resumed run did again; + marks uncommitted changes."
        )
    ]
    folded = ("status", "configuration differs from most runs in", "commit", "hardware", "starts")
    return Table("runs", "Runs and their provenance", headings, rows, notes, folded=folded)


def run_score(run: Run) -> Cell:
    """The score of one run."""
    if run.summary is None:
        return number(None)
    return number(run.summary.scores.get(run.summary.score), ".2f")


def commit(run: Run) -> str:
    """The commit of a run's last start; + where the source tree had other changes."""
    if not run.starts:
        return NOTHING
    last = run.starts[-1]
    return f"{last.git_commit[:SHORT]}{' +' if last.git_dirty else ''}" if last.git_commit else NOTHING


def last_start(run: Run, key: str, first: bool = False) -> str:
    """Reads what provenance.json says of a run's last start."""
    value = getattr(run.starts[0 if first else -1], key) if run.starts else None
    return NOTHING if value is None else str(value)
