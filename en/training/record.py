"""What an epoch has been like so far: losses and gradients, kept on the device so that no step waits for them."""

import math
from typing import Any

import torch
from torch import Tensor

from en.distributed.ranks import Ranks, sum_over_ranks
from en.runs.checkpoint import Losses

WHATS = ("loss", "gradient")


class LossWatch:
    """Adds up losses on the device and remembers there the first step whose loss or gradient was not finite.

    Attributes:
        notes: what else is to be told of the epoch: damaged images, steps left out.
        left_out: how many of the last steps in a row were left out.
    """

    def __init__(self, device: torch.device) -> None:
        self.notes: list[dict[str, Any]] = []
        self.left_out = self.steps = 0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._first_bad = torch.full((2,), math.inf, dtype=torch.float64, device=device)  # of losses, of gradients

    def add(self, loss: Tensor, norm: Tensor | None, step: int) -> None:
        """Counts one step's loss and the norm of its gradient, without synchronization."""
        self._sum += loss
        self.steps += 1
        self.left_out = 0
        values = torch.stack([loss.double(), loss.double() if norm is None else norm.double()])
        self._first_bad = torch.minimum(self._first_bad, torch.where(values.isfinite(), math.inf, float(step)))

    def first_bad(self, ranks: Ranks) -> tuple[int, int, str] | None:
        """The first bad step of all ranks, the rank that had it and what was bad; all ranks have to ask together.

        A loss is named before a gradient: the gradient of a loss that is not finite is not finite on every rank.
        """
        firsts = torch.zeros(ranks.world_size, 2, dtype=torch.float64, device=self._first_bad.device)
        firsts[ranks.rank] = self._first_bad.nan_to_num(posinf=-1.0) + 1
        found = [
            (int(step) - 1, kind, rank)
            for rank, row in enumerate(sum_over_ranks(firsts).tolist())
            for kind, step in enumerate(row)
            if step
        ]
        if not found:
            return None
        step, kind, rank = min(found)
        return step, rank, WHATS[kind]

    def mean(self, ranks: Ranks) -> float:
        """The mean loss over all ranks and the steps so far."""
        return float(sum_over_ranks(self._sum.clone())) / (ranks.world_size * max(self.steps, 1))

    def state(self) -> Losses:
        """What a checkpoint keeps of it."""
        return {"sum": float(self._sum), "steps": self.steps, "notes": self.notes, "left_out": self.left_out}

    def restore(self, states: list[Losses], ranks: Ranks) -> None:
        """Goes on from the states of all ranks; with another number of ranks, each takes the mean of the sums."""
        same = len(states) == ranks.world_size
        own = states[ranks.rank] if same else states[0]
        self._sum.fill_(own["sum"] if same else sum(state["sum"] for state in states) / len(states))
        self.steps, self.left_out = own["steps"], own["left_out"]
        self.notes = list(own["notes"]) if same else [note for state in states for note in state["notes"] if ranks.is_first]
