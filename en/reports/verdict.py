"""A few runs beside earlier ones of the same recipe over several seeds, and who wins."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator
from rich.console import Console
from rich.table import Table
from rich.text import Text

from en.config.section import Section, first_problem
from en.config.section import Text as Line
from en.config.strict_yaml import read_tree
from en.errors import UserError
from en.reports.runs import Run
from en.reports.statistics import difference, estimate

KIND = "a YAML file of measured scores, see docs/quickstart_scores.yaml"


class Measured(Section):
    """Scores of one recipe over seeds.

    Attributes:
        command, hardware, date: how they were measured.
        metric: its name in a run's scores.
        seeds: of the runs.
        scores: by normalizer, one for each seed.
    """

    command: Annotated[str, Field(max_length=1000)]
    hardware: Line
    date: Line
    metric: Line
    seeds: Annotated[list[int], Field(min_length=2)]
    scores: Annotated[dict[str, list[float]], Field(min_length=2)]

    @model_validator(mode="after")
    def _complete(self) -> "Measured":
        for name, values in self.scores.items():
            if len(values) != len(self.seeds):
                raise ValueError(f"scores.{name}: expected {len(self.seeds)} values, one for each seed")
        return self


def read_measured(path: Path) -> Measured:
    """A file of measured scores. Raises UserError that names the file and the key."""
    try:
        return Measured.model_validate(read_tree(path, KIND))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error, lambda place: f'unknown key {place[-1]}')}") from error


def show_verdict(runs: Sequence[Run], measured: Measured) -> None:
    """Prints each run beside the mean of its normalizer's earlier ones, and the verdict on those."""
    own = {run.summary.norm: run.summary.scores.get(measured.metric) for run in runs if run.summary}
    table = Table(box=None, pad_edge=False)
    for heading in ("normalizer", "this run", f"{len(measured.seeds)} seeds", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "normalizer" else "right")
    for name, values in measured.scores.items():
        found, score = estimate(values), own.get(name)
        assert found is not None
        table.add_row(
            Text(name),
            "-" if score is None else f"{score:.2f}",
            f"{found.mean:.2f} ± {found.sd:.2f}",
            f"{found.low:.2f} to {found.high:.2f}",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"{measured.metric} in %, mean ± standard deviation; {measured.hardware}, {measured.date}")
    console.print(verdict(measured.scores, measured.seeds))


def verdict(scores: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> str:
    """One sentence on the two normalizers with the highest means: which wins, and is that more than the spread?"""
    first, second = sorted(scores, key=lambda name: statistics.fmean(scores[name]), reverse=True)[:2]
    gap = difference(*(dict(zip(seeds, scores[name], strict=True)) for name in (second, first)))
    spread = max(statistics.stdev(scores[name]) for name in (first, second))
    lead = f"Over {len(seeds)} seeds {first} is {gap.mean:.2f} points above {second}, the next"
    size = f"{'larger' if gap.mean > spread else 'not larger'} than the spread between seeds ({spread:.2f})"
    if gap.low is None:
        return f"{lead}: {size}."
    wins = gap.low > 0
    joint = "and" if wins == (gap.mean > spread) else "but"
    interval = f"the 95 % interval of the paired difference, {gap.low:+.2f} to {gap.high:+.2f},"
    end = f"does not contain 0: {first} wins" if wins else "contains 0: neither is shown to win"
    return f"{lead}: {size}, {joint} {interval} {end}."
