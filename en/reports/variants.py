"""What is compared: runs that differ in seed alone, and the variants that were scored on the same images."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from en.config.meaning import decides
from en.config.strict_yaml import Tree
from en.errors import shown
from en.means import Means
from en.norm.registry import norm_defaults
from en.reports.runs import Run, frozen
from en.reports.statistics import Estimate, estimate
from en.runs.summary import Summary
from en.size import in_words, size_of
from en.tasks import TASKS, Label

UNSET = "unset"  # a key that one configuration has and another has not
IN_SUMMARY = ("model.name", "task.name", "data.resolution", "data.eval_resolution")  # keys that a summary has resolved


@dataclass(frozen=True)
class Variant:
    """Runs that differ in seed alone, as far as they come.

    Attributes:
        runs: all of them, each with a summary.
        base: the facts that most runs of the report share.
    """

    runs: tuple[Run, ...]
    base: Tree = field(repr=False)

    @property
    def summary(self) -> Summary:
        """Returns the first run's summary: what it says of the configuration holds for all."""
        return summary_of(self.runs[0])

    @cached_property
    def counted(self) -> dict[int, Run]:
        """The runs by seed. Of a seed's runs the first counts: a repetition says nothing of other seeds."""
        by_seed: dict[int, Run] = {}
        for run in self.runs:
            by_seed.setdefault(summary_of(run).seed, run)
        return by_seed

    @property
    def is_finished(self) -> bool:
        return self.runs[0].is_finished

    @cached_property
    def facts(self) -> Tree:
        return facts(self.runs[0])

    @cached_property
    def marks(self) -> list[str]:
        """Says how it differs from what most runs of the report share, besides its normalizer."""
        return [mark(key, value) for key, value in unlike(self.facts, self.base).items() if key != "norm"]

    @cached_property
    def name(self) -> str:
        """Returns a name that no other variant of the report has."""
        return ", ".join([self.facts["norm"], *self.marks])

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric after the last finished epoch, by seed."""
        scores = {seed: summary_of(run).scores for seed, run in self.counted.items()}
        return {seed: values[metric] for seed, values in scores.items() if metric in values}

    def estimate(self, metric: str) -> Estimate | None:
        return estimate([*self.by_seed(metric).values()])

    @property
    def score(self) -> Estimate | None:
        """The metric by which the task chooses its best checkpoint."""
        return self.estimate(self.summary.score)

    @property
    def gmacs(self) -> float:
        """1e9 MACs of one image: convolutions, linear layers and normalizers."""
        return self.summary.gmacs + self.summary.norm_gmacs

    @property
    def speed(self) -> Estimate | None:
        """Training images/s in the last epoch; a run that resumed after its last training step has none."""
        speeds = (summary_of(run).images_per_second for run in self.runs)
        return estimate([speed for speed in speeds if speed is not None])

    @property
    def speed_by_seed(self) -> dict[int, float]:
        """The same of the counted runs, by seed, where it is above 0."""
        speeds = {seed: summary_of(run).images_per_second for seed, run in self.counted.items()}
        return {seed: speed for seed, speed in speeds.items() if speed}

    @property
    def hardware(self) -> str:
        """Hardware and ranks of the runs, each once."""
        return "; ".join(dict.fromkeys(machine(summary_of(run)) for run in self.runs))


@dataclass(frozen=True)
class Peers:
    """Variants whose scores can be set against each other: one task, metric and set of evaluation images.

    Attributes:
        variants: the finished ones first, from the highest score to the lowest.
        reference: what costs and gains are counted from: the first in the order of the runs that is finished, if any.
        score, label: the metric, and how it is written.
        name, number: tell them from the other peers of a report; "" and 0 where there are none.
    """

    variants: tuple[Variant, ...]
    reference: Variant
    score: str
    label: Label
    name: str
    number: int

    @property
    def finished(self) -> list[Variant]:
        """Those that are finished and have a score."""
        return [variant for variant in self.variants if variant.is_finished and variant.score]

    def file(self, name: str) -> str:
        """The name of a file about these variants."""
        return f"{name}_{self.number}" if self.number else name

    def titled(self, title: str) -> str:
        """A title that says which variants it is of, where there are others."""
        return f"{title}: {self.name}" if self.name else title


def find_variants(runs: Sequence[Run]) -> list[Variant]:
    """The runs with a summary, those of one network, normalizer, data set, recipe and number of epochs together."""
    groups = defaultdict(list)
    for run in runs:
        if run.summary:
            groups[frozen(facts(run))].append(run)
    base = most_common([facts(run) for runs in groups.values() for run in runs])
    return [Variant(tuple(group), base) for group in groups.values()]


def find_peers(variants: Sequence[Variant]) -> list[Peers]:
    """The variants by what their scores are of."""
    groups = defaultdict(list)
    for variant in variants:
        s = variant.summary
        groups[s.task, s.score, s.dataset, s.classes, s.images].append(variant)
    several = len(groups) > 1
    return [
        Peers(
            tuple(sorted(group, key=rank)),
            next((variant for variant in group if variant.is_finished and variant.score), group[0]),
            score,
            label(task, score),
            f"{dataset} ({classes} classes, {images:,} images), {task}" if several else "",
            at if several else 0,
        )
        for at, ((task, score, dataset, classes, images), group) in enumerate(groups.items(), 1)
    ]


def rank(variant: Variant) -> tuple[bool, float]:
    """Sorts the finished variants first, from the highest score to the lowest."""
    return not variant.is_finished, -variant.score.mean if variant.score else math.inf


def summary_of(run: Run) -> Summary:
    """The summary of a run that has one."""
    assert run.summary is not None
    return run.summary


def facts(run: Run) -> Tree:
    """All that is the same in runs that differ in seed alone."""
    s = summary_of(run)
    defaults = norm_defaults(s.norm)
    options = defaults | s.norm_options  # in one order, whatever the configuration's was
    own = {key: value for key, value in options.items() if key not in defaults or defaults[key] != value}
    text = ", ".join(f"{key}={plain(value)}" for key, value in own.items())
    return {
        "model": s.model,
        "norm": s.norm + (f" ({text})" if text else ""),
        "task": s.task,
        "data": f"{s.dataset} ({s.classes} classes, {s.images:,} images)",
        "resolution": resolution(s),
        "status": run.status,
        **{key: value for key, value in run.recipe.items() if key not in IN_SUMMARY},
    }


def machine(s: Summary) -> str:
    """Says on what a run was trained."""
    return f"{s.hardware}, {counted(s.world_size, 'rank')}"


def counted(number: float, what: str) -> str:
    """So many of something."""
    return f"{number:,g} {what}" + ("" if number == 1 else "s")


def resolution(s: Summary) -> str:
    """Says the resolution of training, and of evaluation where that is another."""
    trained, scored = (in_words(size_of(sides)) for sides in (s.resolution, s.eval_resolution))
    return f"{trained} px" + (f", scored at {scored} px" if scored != trained else "")


def mark(key: str, value: Any) -> str:
    """A fact in words."""
    return plain(value) if key == "status" else f"{key}={plain(value)}"


def most_common(trees: Iterable[Tree]) -> Tree:
    """For each key the value that most trees have, or lack; of two as frequent ones the first."""
    trees = list(trees)
    keys = dict.fromkeys(key for tree in trees for key in tree)
    base = {}
    for key in keys:
        values = {frozen(tree.get(key, UNSET)): tree.get(key, UNSET) for tree in trees}
        base[key] = values[Counter(frozen(tree.get(key, UNSET)) for tree in trees).most_common(1)[0][0]]
    return base


def unlike(tree: Tree, base: Tree) -> Tree:
    """The keys of either whose values are not those of the base, with the tree's values."""
    keys = dict.fromkeys([*base, *tree])
    return {key: tree.get(key, UNSET) for key in keys if frozen(tree.get(key, UNSET)) != frozen(base.get(key, UNSET))}


def differences(run: Run, base: Tree) -> list[str]:
    """`key=value` for each key in which a run's configuration is not the base."""
    return [f"{key}={plain(value)}" for key, value in unlike(own_config(run), base).items()]


def own_config(run: Run) -> Tree:
    """A run's configuration without the keys that each run has a value of its own for."""
    return {key: value for key, value in run.config.items() if not decides(key, Means.OWN)}


def labels_of(summary: Summary) -> dict[str, Label]:
    """The metrics of a run that a table shows."""
    task = TASKS.get(summary.task)
    if task is None:
        return {summary.score: Label(summary.score, "")}
    return {name: label for name, label in task.labels.items() if name in summary.scores}


def label(task: str, metric: str) -> Label:
    """Returns how a metric is written for people."""
    return TASKS[task].labels.get(metric, Label(metric, "")) if task in TASKS else Label(metric, "")


def heading(label: Label) -> str:
    return f"{label.text} {label.unit}".strip()


def plain(value: Any) -> str:
    """An option's value in words."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return value if isinstance(value, str) else shown(value)
