"""How far the runs of a suite are, by their folders, and what they cost."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from en.build import build_network, open_loaders
from en.config.meaning import changes, deciding
from en.config.reading import flatten, load_config
from en.config.schema import Config
from en.data.labels.sidecar import digest_in, sidecar_path
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.means import Means
from en.models import Complexity, complexity
from en.norm.registry import INHERITED
from en.runs.checkpoint import digest_of, locate
from en.runs.read import digests_of, read_log, read_starts
from en.runs.summary import Summary
from en.suites.failures import Failure, failure_of, has_folder
from en.suites.plan import Planned
from en.tasks.base import Label

DIGESTS = {"data.labels": digest_in, "init": digest_of}
"""Reads the digest of the file that a key names."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        begun: whether its folder holds anything of it.
        epochs: finished ones.
        seconds: of training, for each of them, by its log.
        failure: of its latest start; None for a run that was interrupted, or has not failed.
    """

    begun: bool
    epochs: float
    seconds: tuple[float, ...]
    failure: Failure | None = None

    def is_finished(self, run: Planned) -> bool:
        """Tells whether nothing of its run is left to do."""
        return 0 < epochs_planned(run) <= self.epochs


def progress_of(run: Planned) -> Progress:
    """Reads how far a run is. Raises UserError where its folder holds another run than the one that is planned."""
    refuse_another(run)
    refuse_other_files(run)
    seconds, epochs = [row.seconds for row in read_log(run.folder, silent=True) if row.seconds > 0], epochs_of(run)
    if (epochs and run.config.evaluation.every_steps) or run.config.train.steps:
        seconds = [sum(seconds) / epochs] if epochs else []  # a row is not of an epoch
    return Progress(has_folder(run), epochs, tuple(seconds), failure_of(run))


def epochs_planned(run: Planned) -> float:
    """Counts the epochs that a run takes; one that is told in steps says it in its summary, until then 0."""
    if run.config.train.epochs is not None:
        return run.config.train.epochs
    try:
        return summary_of(run).epochs
    except (OSError, ValidationError):
        return 0


def epochs_of(run: Planned) -> float:
    """Counts the finished epochs of a run, by its summary."""
    try:
        return summary_of(run).epochs_done
    except (OSError, ValidationError):
        return 0


def result_of(run: Planned) -> float | None:
    """Returns the score of a finished run after its last epoch; None of one that is not finished."""
    try:
        summary = summary_of(run)
    except (OSError, ValidationError):
        return None
    finished = 0 < epochs_planned(run) <= summary.epochs_done
    return summary.scores.get(run.config.task.score) if finished else None


def label_of(run: Planned) -> Label:
    """Returns how the score of a run is written."""
    task = run.config.task
    return task.labels.get(task.score, Label(task.score, ""))


def summary_of(run: Planned) -> Summary:
    """Raises OSError or ValidationError where the run has no readable one."""
    return Summary.model_validate_json((run.folder / "summary.json").read_bytes())


def options_then(run: Planned) -> dict[str, Any]:
    """All options of the normalizer with which the run's epochs were trained, as far as its summary tells."""
    try:
        return {f"norm.{key}": value for key, value in summary_of(run).norm_options.items()}
    except (OSError, ValidationError):
        return {}


def refuse_another(run: Planned) -> None:
    """Raises UserError where the run's folder was begun with another recipe, normalizer or seed, or other defaults."""
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    begun = load_config(str(path), [])
    then = flatten(begun.complete())
    then |= {key: value for key, value in options_then(run).items() if key in then}
    differing = changes(then, run.config.complete())
    # Options that nobody gave are those of the network's library, which only the network could tell.
    of_library = {f"norm.{key}" for key in INHERITED if key not in {*begun.norm.options, *run.config.norm.options}}
    for key in deciding(differing, Means.RECIPE | Means.FIXED):
        if key not in of_library:
            before, now = differing[key]
            raise UserError(
                f"{run.folder}: holds a run with {key}={before}: expected {now}, as the suite says, or another --out"
            )


def refuse_other_files(run: Planned) -> None:
    """Raises UserError where a file that a key names is not the one that the run read under that name.

    One that is no longer there is not missed: what was trained with it may be finished.
    """
    config = run.config
    paths = {
        "data.labels": config.data.labels and sidecar_path(Path(config.data.root), config.data.labels),
        "init": config.init and locate(config.init),
    }
    for key, then in digests_of(read_starts(run.folder) or []).items():
        path = paths[key]
        try:
            now = DIGESTS[key](path) if path and path.is_file() else then
        except OSError as error:
            raise UserError(
                f"{key}={path}: {error.strerror}: expected the file that {run.folder} was begun with"
            ) from error
        if now != then:
            raise UserError(
                f"{run.folder}: holds a run with {key}={flatten(config.complete())[key]} of the digest {then}: "
                f"expected {now}, which that file has today, or another --out"
            )


def seconds_left(runs: Sequence[Planned], progress: Sequence[Progress], at_once: int) -> float | None:
    """Seconds of training that a suite still takes, by the epochs done so far, of the same variant where there are any.

    Runs that failed take none: they are not tried again unasked. None before the first epoch of any run.
    """
    own: dict[str, list[float]] = {}
    for run, so_far in zip(runs, progress, strict=True):
        own.setdefault(run.variant, []).extend(so_far.seconds)
    everything = [seconds for found in own.values() for seconds in found]
    if not everything:
        return None
    usual = statistics.mean(everything)
    total = 0.0
    for run, so_far in zip(runs, progress, strict=True):
        if so_far.failure:
            continue
        epoch = statistics.mean(own[run.variant]) if own[run.variant] else usual
        total += epoch * max(0, epochs_planned(run) - so_far.epochs)
    return total / at_once


def costs_of(variants: Mapping[str, Planned]) -> dict[str, Complexity]:
    """Counts each network's cost, opening each data set once. Raises UserError as `classes_of` and `cost_of`."""
    classes: dict[tuple[str, str], int] = {}
    for run in variants.values():
        data = run.config.data
        if (data.loader, data.root) not in classes:
            classes[data.loader, data.root] = classes_of(run.config)
    return {name: cost_of(run, classes[run.config.data.loader, run.config.data.root]) for name, run in variants.items()}


def classes_of(config: Config) -> int:
    """Counts the classes of the data. Raises UserError for data that cannot be read."""
    loader = open_loaders(config, Ranks(0, 1, 0, 1), ["val"])["val"]
    loader.close()
    return len(loader.classes)


def cost_of(run: Planned, classes: int) -> Complexity:
    """Parameters and GMACs of a run's network. Raises UserError for one that cannot be built."""
    with torch.device("meta"):
        return complexity(build_network(run.config, classes), run.config.eval_resolution)
