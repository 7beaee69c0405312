"""A row of log.jsonl, the one definition of what stands in it: written by training, read by reports and suites."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from en.runs.scores import Scores

MAX_NUMBER = 1e15  # of one that is read
KEY = ("step", "epoch")
GROUPS = ("wrong_labels", "right_labels")  # of training samples, by what a sidecar gives them
OUTCOMES = (  # of samples by their group: whether their true, their given (memorized), or another class was predicted
    "wrong_labels_true",
    "wrong_labels_given",
    "wrong_labels_other",
    "right_labels_true",
    "right_labels_other",
)
INCIDENTS = ("damaged", "left_out", "scaler_skipped")  # of which there are notes, see events.jsonl


@dataclass(frozen=True)
class Row:
    """Training up to an evaluation in numbers, and the scores of that evaluation.

    A row that is read may be damaged, or of an earlier version: what it does not tell is as by default.

    Attributes:
        step: steps of the run that are done; None in a run whose rows are keyed by epochs.
        epoch: epochs that are done, a fraction where there is a step.
        train_loss: mean over all ranks and the steps since the last evaluation.
        lr: of the last step.
        images_per_second: of training, over all ranks; None where the run resumed after its last step.
        data_wait: the share of `seconds`, 0 to 1, in which rank 0 waited for data.
        seconds: of training, of what this process did of it.
        resolution: of the training images, as the configuration has it.
        damaged, left_out, scaler_skipped: images and steps that did not count, steps at which float16 overflowed.
        images: that were evaluated.
        scores: the task's metrics of them.
        outcomes: of training samples under given labels (see shares); empty in a run that has none.
    """

    step: int | None = None
    epoch: float = 0
    train_loss: float = math.nan
    lr: float = math.nan
    images_per_second: float | None = None
    data_wait: float = math.nan
    seconds: float = math.nan
    resolution: int | list[int] = 0
    damaged: int = 0
    left_out: int = 0
    scaler_skipped: int = 0
    images: int = 0
    scores: Scores = field(default_factory=lambda: Scores({}, {}))
    outcomes: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Row":
        """Takes the finite numbers of a row that was read."""
        numbers = {name: float(value) for name, value in content.items() if is_number(value)}
        outcomes = {name: numbers.pop(name) for name in (*GROUPS, *OUTCOMES) if name in numbers}
        own: dict[str, Any] = {name: numbers.pop(name) for name in NAMES if name in numbers}
        own |= {name: content[name] for name in KEY if name in own}
        return Row(**own, scores=Scores(numbers, {}), outcomes=outcomes)

    @property
    def key(self) -> dict[str, Any]:
        """Returns what rows of this and other files are keyed by."""
        return {"epoch": self.epoch} if self.step is None else {"step": self.step, "epoch": self.epoch}

    @property
    def training(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in NAMES if name not in (*KEY, "images")}
        return {**own, **self.outcomes}

    @property
    def evaluation(self) -> dict[str, float]:
        return self.scores.values | {"images": self.images}

    def content(self) -> dict[str, Any]:
        """Returns what the file holds."""
        return self.key | self.training | self.evaluation | self.scores.details


NAMES = tuple(each.name for each in fields(Row) if each.name not in ("scores", "outcomes"))
"""Names that every row has."""
TAKEN = (*NAMES, *GROUPS, *OUTCOMES)
"""Names in a row that no metric can have."""


def shares(counts: Sequence[int]) -> dict[str, float]:
    """Counts by OUTCOMES as a row has them: by group, how many samples there are, and of these the shares, 0 to 1."""
    by_name, found = dict(zip(OUTCOMES, counts, strict=True)), dict[str, float]()
    for group in GROUPS:
        own = {name: count for name, count in by_name.items() if name.startswith(group)}
        samples = found[group] = sum(own.values())
        found |= {name: count / samples for name, count in own.items() if samples}
    return found


def told(outcomes: Mapping[str, float]) -> str:
    """Says what came of samples that are labelled wrongly; "" where nothing is known."""
    words = {"wrong_labels_true": "known better", "wrong_labels_given": "memorized"}
    return ", ".join(f"{100 * outcomes[name]:.1f} % of wrong labels {said}" for name, said in words.items()
                     if name in outcomes)  # fmt: skip


def is_number(value: object) -> bool:
    """Tells whether a value of a row is one that can be drawn."""
    return isinstance(value, (int, float)) and abs(value) <= MAX_NUMBER
