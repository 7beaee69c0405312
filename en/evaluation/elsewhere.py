"""A finished network scored on sets that it was not trained on."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from en.build import open_set
from en.config.schema import Config
from en.data import Batch, ImageLoader
from en.data.loader import Wrapped
from en.data.order import Ints
from en.data.sources.real import as_rows, join, read_real
from en.data.targets import ClassIndex
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.errors import UserError, in_one_line
from en.evaluation.adapt import Statistics, say_what_adapts
from en.evaluation.coverage import Coverage, cover
from en.evaluation.evaluate import Watcher, evaluate
from en.evaluation.groups import Corruptions, RealLabels
from en.evaluation.score import together
from en.evaluation.trained import open_trained
from en.norm.adaptation import averaging_layers
from en.runs.provenance import ranks_facts
from en.size import Size
from en.tasks.base import Label
from en.tasks.classification import Classification

Line = dict[str, Any]
LABELS = Classification.labels | {"mce": Label("mCE", "%")}  # of what the table shows


class CutNetwork(nn.Module):
    """A network whose outputs are those of some classes alone, (B, classes), so that softmax and top-k know no other.

    Args:
        outputs: their numbers among the network's, (classes,).
    """

    def __init__(self, network: nn.Module, outputs: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("outputs", outputs, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)[:, self.outputs]
        return outputs


class Covered(Wrapped):
    """Shows those of a set's images whose classes a network knows, under their places there (see ImageLoader).

    Attributes:
        loader: of all of the set, whose indices samples keep in batches.
        coverage: what the network knows of it.
    """

    def __init__(self, loader: ImageLoader, coverage: Coverage, ranks: Ranks) -> None:
        super().__init__(loader)
        self.coverage, self.ranks = coverage, ranks
        self.classes, self.samples = coverage.classes, len(coverage.samples)

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return self.eval_samples(np.arange(self.ranks.rank, self.samples, self.ranks.world_size), size)

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        places = torch.from_numpy(self.coverage.places)
        for batch in self.loader.eval_samples(self.coverage.samples[samples], size):
            yield batch._replace(targets=places[batch.targets])

    def part(self, samples: Ints) -> "Covered":
        """The same of some of the images, by their indices in the whole set."""
        return Covered(self.loader, self.coverage._replace(samples=samples), self.ranks)


class OpenSet(NamedTuple):
    """A set that is to be scored on.

    Attributes:
        where: as it was given.
        covered: its images.
        real: ReaL's labels of all of them, if they are asked for and it has those.
    """

    where: str
    covered: Covered
    real: list[list[str]] | None


class Adapted(NamedTuple):
    """How a network is scored: by which statistics, see Statistics, and by which seed their batches are drawn."""

    statistics: Statistics = Statistics()
    seed: int = 0

    def row(self, network: nn.Module) -> Line:
        """Returns what is printed of them."""
        layers = 0 if self.statistics.kind == "none" else len(averaging_layers(network))
        return {"statistics": str(self.statistics), "adapted_layers": layers}


class PartByPart(NamedTuple):
    """Evaluation of a set part by part, a network taking statistics of each of its own (see EvaluationSet)."""

    covered: Covered
    parts: Sequence[Covered]
    network: nn.Module
    to_device: ToDevice
    adapted: Adapted

    @property
    def classes(self) -> list[str]:
        return self.covered.classes

    @property
    def samples(self) -> int:
        return self.covered.samples

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        assert size is not None
        statistics, seed = self.adapted
        for part in self.parts:
            # Not shown: the bar of the evaluation, which this is a part of, is.
            with statistics.taken(self.network, part, size, self.to_device, part.ranks, seed, visible=False) as shown:
                yield from shown.eval_epoch(size)


def score_elsewhere(
    where: str,
    overrides: list[str],
    sets: Sequence[str],
    real: Path | None,
    statistics: Sequence[Statistics] | None = None,
    seed: int = 0,
) -> Iterator[Line]:
    """Scores a run's last.pt, or a checkpoint, on sets: on val, or on test of those without; matched by their classes.

    All sets are opened before the first is scored, so that a mistake costs no time. Rows are the same on all ranks.

    Args:
        where: a run folder or a checkpoint.
        overrides: `key=value` over the configuration in the checkpoint.
        sets: folders, prepared or of image files.
        real: ReaL's real.json, for one row more of each set of ImageNet's validation images.
        statistics: a row for each of these, which says so; None: those of training alone.
        seed: of the order in which images come into batches for statistics.
    Yields: a row for each set: on which set the network was trained, on which it is scored, how many of its classes and
        images count, the metrics.
    Raises: UserError, RunError.
    """
    ranks = Ranks.from_environment()
    trained = open_trained(where, overrides, ranks, ())
    config = trained.config
    if config.task.target is not ClassIndex:
        raise UserError(f"--on with task.name={config.task.name}: expected a task that names images")
    labels = None if real is None else read_real(real)
    with opened(config, ranks, sets, trained.saved.classes, labels) as found:
        loaders = {each.where: each.covered.loader for each in found}
        data = {name: {"samples": loader.samples, "digest": loader.digest} for name, loader in loaders.items()}
        made_by = {name: version for loader in loaders.values() for name, version in loader.made_by.items()}
        facts = ranks_facts(config, data, made_by) | {"checkpoint": trained.saved.digest}
        facts |= {"real": hashlib.sha256(repr(labels).encode()).hexdigest()}
        facts |= {"statistics": [*map(str, statistics or [])], "seed of statistics": seed}
        with together(trained, ranks, facts) as to_device:
            say_what_adapts(trained, statistics or [], ranks)
            for each in found:
                for kind in statistics or [Statistics()]:
                    adapted = Adapted(kind, seed)
                    said = adapted.row(trained.model) if statistics else {}
                    for row in rows_of(each, config, trained.model, to_device, adapted):
                        yield {"trained_on": trained.saved.data["name"]} | row | said


@contextmanager
def opened(
    config: Config, ranks: Ranks, sets: Sequence[str], trained: Sequence[str], labels: list[list[int]] | None
) -> Iterator[list[OpenSet]]:
    """Opens sets, and closes their loaders at the end.

    Raises: UserError for one whose classes do not match the trained ones by id, and for labels that fit none.
    """
    with ExitStack() as stack:
        found = []
        for where in sets:
            loader = open_set(config, ranks, Path(where))
            stack.callback(loader.close)
            try:
                coverage = cover(trained, loader.classes, loader.labels())
            except ValueError as error:
                raise UserError(f"--on {where}: {error}") from error
            if not len(coverage.samples):
                raise UserError(f"--on {where}: no images of the {len(coverage.classes)} classes that match")
            covered = Covered(loader, coverage, ranks)
            found.append(OpenSet(where, covered, join(labels, names_of(loader)) if labels else None))
        if labels is not None and not any(each.real for each in found):
            raise UserError("--real: expected a set of files ILSVRC2012_val_*, of ImageNet's validation, in --on")
        yield found


def rows_of(each: OpenSet, config: Config, network: nn.Module, to_device: ToDevice, adapted: Adapted) -> Iterator[Line]:
    """The row of a set, and that of ReaL's labels of it. Statistics are of each corruption and severity by itself."""
    covered, device = each.covered, to_device.device
    loader, coverage = covered.loader, covered.coverage
    real = RealLabels(as_rows(each.real, coverage.classes), device) if each.real else None
    names = names_of(loader)
    corruptions = Corruptions(names, coverage.samples, device) if Corruptions.named_so(names) else None
    watchers: list[Watcher] = [watcher for watcher in (real, corruptions) if watcher]
    cut = network if coverage.is_all else CutNetwork(network, torch.from_numpy(coverage.outputs).to(device))
    parts = [covered]
    if corruptions and adapted.statistics.kind != "none":
        parts = [covered.part(samples) for samples in corruptions.parts()]
    shown = PartByPart(covered, parts, network, to_device, adapted)
    try:
        scores = evaluate(config.task, cut, shown, config.shown_size, to_device, covered.ranks.is_first, watchers)
    except ValueError as error:
        if adapted.statistics.kind == "none":
            raise
        raise UserError(f"--statistics {adapted.statistics}: --on {each.where}: {error}") from error
    row = {"on": loader.name, "split": loader.split, "classes": len(coverage.classes)}
    row |= {"of_classes": len(loader.classes), "images": covered.samples, "of_images": loader.samples}
    yield row | scores.values | scores.details | (corruptions.scores() if corruptions else {})
    if real:
        yield row | {"on": f"{loader.name}, ReaL"} | real.scores()


def names_of(loader: ImageLoader) -> list[str]:
    """The names of a loader's samples; none of a set that was prepared without."""
    try:
        return loader.names()
    except UserError:
        return []


def table(rows: Sequence[Line]) -> list[str]:
    """The rows as a table for people, a line each."""
    columns = {name: label for name, label in LABELS.items() if any(name in row for row in rows)}
    words = ["statistics"] if any("statistics" in row for row in rows) else []
    heading = ["trained on", "on", *words, "classes", "images"]
    cells = [[*heading, *(f"{label.text} {label.unit}" for label in columns.values())]]
    for row in rows:
        counts = [f"{row[name]:,} of {row[f'of_{name}']:,}" for name in ("classes", "images")]
        scores = [f"{row[name]:.2f}" if row.get(name) is not None else "" for name in columns]
        named = [row["trained_on"], f"{row['on']} ({row['split']})", *(row[name] for name in words)]
        cells.append([*named, *counts, *scores])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return [in_one_line("  ".join(line).rstrip()) for line in padded]
