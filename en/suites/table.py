"""A suite in the terminal: its plan, and in the end its scores."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from en.models import Complexity
from en.progress import clock, duration
from en.suites.plan import Planned
from en.suites.state import Progress, epochs_planned, label_of, result_of


def show_plan(
    runs: Sequence[Planned], progress: Sequence[Progress], costs: Mapping[str, Complexity], left: float | None
) -> None:
    """Prints every run with its network's cost and state, and the time that is left, within the terminal's width.

    Args:
        costs: by variant; none where the data, and so the number of classes, cannot be read.
        left: seconds; None where nothing is known yet.
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "parameters", "GMACs", "+ normalizers", "epochs", "state"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for run, so_far in zip(runs, progress, strict=True):
        cost, epochs = costs.get(run.variant), epochs_planned(run)
        figures = [f"{cost.params:,}", f"{cost.gmacs:.3g}", f"{cost.norm_gmacs:.2g}"] if cost else ["-", "-", "-"]
        table.add_row(run.name, *figures, f"{so_far.epochs:g}/{epochs:g}" if epochs else "-", state_of(run, so_far))
    console = Console(highlight=False, markup=False)
    console.print(table)
    states = [state_of(run, so_far).partition(" ")[0] for run, so_far in zip(runs, progress, strict=True)]
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    time = "the time is known after the first epoch"
    if left is not None:
        time = f"about {duration(left)} of training left, until {clock(left)} from now on"
    console.print(f"{len(runs)} runs, {states.count('finished')} finished{failed}; {time}")


def state_of(run: Planned, so_far: Progress) -> str:
    """A run's state in words, of a failure with its time and reason."""
    if so_far.is_finished(run):
        return "finished"
    return str(so_far.failure or ("interrupted" if so_far.begun else "missing"))


def show_scores(runs: Sequence[Planned], out: Path) -> None:
    """Prints what each variant has reached over its seeds, the best first, and what compares them; nothing of nothing.

    Args:
        out: the folder of the runs.
    """
    ended = [(run.variant, result) for run in runs if (result := result_of(run)) is not None]
    if not ended:
        return
    label = label_of(runs[0])
    found: dict[str, list[float]] = {}
    for variant, score in ended:
        found.setdefault(variant, []).append(score)
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", "seeds", f"{label.text} {label.unit}".strip(), "sd", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", overflow="fold")
    for variant, scores in sorted(found.items(), key=lambda item: -statistics.mean(item[1])):
        spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "-"
        figures = [f"{value:.2f}" for value in (statistics.mean(scores), min(scores), max(scores))]
        table.add_row(variant, f"{len(scores)}", figures[0], spread, *figures[1:])
    console = Console(highlight=False, markup=False)
    console.print(table)
    unfinished = f", {len(runs) - len(ended)} runs not finished" if len(ended) < len(runs) else ""
    console.print(f"of {len(ended)} finished runs after their last epoch{unfinished}", soft_wrap=True)
    folder, report = (shlex.quote(str(path)) for path in (out, out.with_name(f"{out.name}-report")))
    console.print(f"which differences are shown: en-report {folder} --out {report}", soft_wrap=True)
    console.print(f"curves: tensorboard --logdir {folder}", soft_wrap=True)
