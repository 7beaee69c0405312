"""A suite's plan in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from en.models import Complexity
from en.suites.plan import Planned
from en.suites.state import Progress


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
        cost, epochs = costs.get(run.variant), run.config.train.epochs
        figures = [f"{cost.params:,}", f"{cost.gmacs:.3g}", f"{cost.norm_gmacs:.2g}"] if cost else ["-", "-", "-"]
        table.add_row(run.name, *figures, f"{so_far.epochs}/{epochs}", state_of(so_far, epochs))
    console = Console(highlight=False, markup=False)
    console.print(table)
    done = sum(so_far.epochs >= run.config.train.epochs for run, so_far in zip(runs, progress, strict=True))
    time = "the time is known after the first epoch" if left is None else f"about {hours(left)} of training left"
    console.print(f"{len(runs)} runs, {done} finished; {time}")


def state_of(so_far: Progress, epochs: int) -> str:
    return "finished" if so_far.epochs >= epochs else "interrupted" if so_far.begun else "missing"


def hours(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
