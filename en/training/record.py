"""Losses, times and incidents of the steps since the last evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from en.data import Batch
from en.data.labels import Relabelled
from en.distributed.collectives import sum_over_ranks
from en.distributed.ranks import Ranks
from en.runs.contents import Losses
from en.runs.pictures import Pixels, few
from en.runs.position import Position
from en.runs.row import OUTCOMES, shares
from en.training.memorization import outcomes

WHATS = ("loss", "gradient")
Seen = tuple[Tensor, Tensor]  # what samples were predicted as, and which they are


class EpochRecord:
    """Losses and gradients of the steps since the last evaluation, times and incidents.

    Losses, norms and counts stay on the device, so that no step waits for them.

    Attributes:
        steps: that counted.
        notes: incidents: damaged images, steps left out; "epoch" and "step", counted from 1, and one thing more.
        left_out: how many of the last steps in a row were left out.

    Args:
        device: of the losses.
        keeps_images: whether this rank keeps some of the first images, to be shown.
    """

    def __init__(self, device: torch.device, keeps_images: bool = False) -> None:
        self.notes: list[dict[str, Any]] = []
        self.left_out = self.steps = 0
        self._outcomes: Tensor | None = None  # of the samples of steps that counted
        self._uncounted: list[Seen] = []  # of steps that counted
        self._of_step: list[Seen] = []
        self._labels: Relabelled | None = None
        self._keeps_images = keeps_images
        self._images: Tensor | None = None
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._told_sum, self._told_steps = 0.0, 0  # up to the last point of the loss by step
        self._first_bad = torch.full((2,), math.inf, dtype=torch.float64, device=device)  # of losses, of gradients
        self.start_clock()

    def start_clock(self) -> None:
        """Begins to count seconds."""
        self._began, self._waited = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the clock was started."""
        return time.perf_counter() - self._began

    @property
    def data_wait(self) -> float:
        """The share of that time in which this rank waited for data, 0 to 1."""
        return self._waited / self.seconds

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time until it is there is counted as waiting."""
        asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def note(self, position: Position, **what: Any) -> None:
        """Notes what happened in the step that led to a position."""
        self.notes.append({"epoch": position.epoch + 1, "step": position.step, **what})

    def see(self, predicted: Tensor, samples: Tensor, labels: Relabelled) -> None:
        """Keeps what samples of the current step were predicted as; they are counted all at once, when asked for.

        Args:
            predicted: class numbers, (B,).
            samples: indices in the training set `labels`, (B,), on the CPU.
        """
        self._labels = labels
        self._of_step.append((predicted, samples))

    def keep(self, images: Tensor, pixels: Callable[[Tensor], Tensor]) -> None:
        """Keeps a few images of the first batch as uint8, where this rank does.

        Args:
            images: (B, 3, H, W), as the network takes them.
            pixels: turns such images into uint8 ones.
        """
        if self._keeps_images and self._images is None:
            batch, _, height, width = images.shape
            self._images = pixels(images[: few(batch, height, width)])

    @property
    def images(self) -> Pixels | None:
        """Some images of the first batch, (N, 3, H, W) uint8; None where none were kept."""
        return None if self._images is None else self._images.cpu().numpy()

    def leave_out(self) -> None:
        """Leaves the current step out."""
        self.left_out += 1
        self._of_step = []

    def add(self, loss: Tensor, norm: Tensor | None, position: Position) -> None:
        """Counts the loss of the step that led to a position and the norm of its gradient, without synchronization."""
        self._sum += loss
        self._uncounted += self._of_step
        self._of_step = []
        self.steps += 1
        self.left_out = 0
        values = torch.stack([loss.double(), loss.double() if norm is None else norm.double()])
        self._first_bad = torch.minimum(self._first_bad, torch.where(values.isfinite(), math.inf, float(position.step)))

    def first_bad(self, ranks: Ranks) -> tuple[int, int, str] | None:
        """The first bad step of all ranks, counted from 1, its rank and what was bad. All ranks have to ask together.

        A loss is named before a gradient: the gradient of a loss that is not finite is not finite on every rank.
        """
        firsts = torch.zeros(ranks.world_size, 2, dtype=torch.float64, device=self._first_bad.device)
        firsts[ranks.rank] = self._first_bad.nan_to_num(posinf=0.0)
        found = [
            (int(step), kind, rank)
            for rank, row in enumerate(sum_over_ranks(firsts).tolist())
            for kind, step in enumerate(row)
            if step
        ]
        if not found:
            return None
        step, kind, rank = min(found)
        return step, rank, WHATS[kind]

    def mean_loss(self, ranks: Ranks) -> float:
        """The mean over all ranks and the steps so far. All ranks have to ask together."""
        return float(sum_over_ranks(self._sum.clone())) / (ranks.world_size * max(self.steps, 1))

    def recent_loss(self, ranks: Ranks) -> float | None:
        """The mean over all ranks and the steps that counted since this was asked last; None where there are none.

        All ranks have to ask together.
        """
        steps, before = self.steps - self._told_steps, self._told_sum
        if not steps:
            return None
        self._told_sum, self._told_steps = float(self._sum), self.steps
        return float(sum_over_ranks(self._sum - before)) / (ranks.world_size * steps)

    def outcomes(self) -> dict[str, float]:
        """Shares of what came of the samples of all ranks so far (see shares); none of runs that do not tell.

        All ranks have to ask together.
        """
        counts = self._counted()
        return {} if counts is None else shares(sum_over_ranks(counts.clone()).tolist())

    def _counted(self) -> Tensor | None:
        """Counts what came of this rank's samples, by OUTCOMES; None where nothing was predicted."""
        if self._uncounted:
            assert self._labels is not None
            predicted, samples = map(torch.cat, zip(*self._uncounted, strict=True))
            found, self._uncounted = outcomes(predicted, self._labels, samples), []
            self._outcomes = found if self._outcomes is None else self._outcomes + found
        return self._outcomes

    def state_dict(self) -> Losses:
        """Returns what a checkpoint keeps of it."""
        own: Losses = {"sum": float(self._sum), "steps": self.steps, "notes": self.notes, "left_out": self.left_out}
        own["told"] = (self._told_sum, self._told_steps)
        if self._images is not None:
            own["images"] = self._images.cpu()
        counts = self._counted()
        if counts is not None:
            own["outcomes"] = counts.tolist()
        return own

    def load_state_dict(self, states: list[Losses], ranks: Ranks) -> None:
        """Resumes from the states of all ranks.

        With another number of ranks, each takes the mean of the sums, and the first one all notes and counts.
        """
        same = len(states) == ranks.world_size
        own = states[ranks.rank] if same else states[0]
        told = [state.get("told", (0.0, 0)) for state in states]
        self._sum.fill_(own["sum"] if same else sum(state["sum"] for state in states) / len(states))
        self._told_sum = told[ranks.rank][0] if same else sum(total for total, _ in told) / len(told)
        self._told_steps = told[0][1]
        if self._keeps_images:
            self._images = states[0].get("images")
        self.steps, self.left_out = own["steps"], own["left_out"]
        self.notes = (
            list(own["notes"]) if same else [note for state in states for note in state["notes"] if ranks.is_first]
        )
        counts = [state["outcomes"] for state in states if "outcomes" in state]
        if counts:
            mine = [counts[ranks.rank]] if same else counts if ranks.is_first else [[0] * len(OUTCOMES)]
            self._outcomes = torch.tensor(mine, device=self._sum.device).sum(0)
