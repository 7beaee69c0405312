"""A suite's plan in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from en.models import Complexity
from en.suites.plan import Planned
from en.suites.state import Progress, epochs_planned


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
    time = "the time is known after the first epoch" if left is None else f"about {hours(left)} of training left"
    console.print(f"{len(runs)} runs, {states.count('finished')} finished{failed}; {time}")


def state_of(run: Planned, so_far: Progress) -> str:
    """A run's state in words, of a failure with its time and reason."""
    if so_far.is_finished(run):
        return "finished"
    return str(so_far.failure or ("interrupted" if so_far.begun else "missing"))


def hours(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
