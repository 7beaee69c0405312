"""A suite in TensorBoard's HPARAMS: which keys its runs differ in, and by what they are compared."""

import json
from collections.abc import Sequence
from pathlib import Path

from en import durable
from en.runs.board import recipe_of
from en.runs.tensorboard import as_file, experiment
from en.suites.plan import Planned, variants_of

FILE = "events.out.tfevents.0.suite"  # in the folder of the runs; one, so that a suite that grows is told anew


def write_experiment(out: Path, runs: Sequence[Planned]) -> None:
    """Tells TensorBoard what a suite varies, beside the folders of its runs. Raises OSError."""
    scores = dict.fromkeys(f"val/{run.config.task.score}" for run in runs)
    out.mkdir(parents=True, exist_ok=True)
    durable.replace(out / FILE, as_file([experiment(varied(runs), [*scores, "val/loss", "train/loss"])]))


def varied(runs: Sequence[Planned]) -> list[str]:
    """Lists the keys of the recipe that have several values among the runs that have them."""
    values: dict[str, set[str]] = {}
    for run in variants_of(runs).values():
        for key, value in recipe_of(run.config).items():
            values.setdefault(key, set()).add(json.dumps(value))
    return [key for key, found in values.items() if len(found) > 1]
