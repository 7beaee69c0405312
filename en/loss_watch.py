"""The losses of an epoch, kept on the device so that no step waits for them."""

import math

import torch
from torch import Tensor

from en.distribution import Ranks, sum_over_ranks


class LossWatch:
    """Adds up losses on the device and remembers there the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._first_bad = torch.full((), math.inf, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, step: int) -> None:
        """Counts one step's loss, without synchronization."""
        self._sum += loss
        bad_step = torch.where(loss.isfinite(), math.inf, float(step))
        self._first_bad = torch.minimum(self._first_bad, bad_step)

    def bad_step(self, ranks: Ranks) -> tuple[int, int] | None:
        """The first bad step of all ranks and the rank that had it; all ranks have to ask together."""
        firsts = torch.zeros(ranks.world_size, dtype=torch.float64, device=self._first_bad.device)
        firsts[ranks.rank] = self._first_bad.nan_to_num(posinf=-1.0) + 1
        steps = [math.inf if step == 0 else step - 1 for step in sum_over_ranks(firsts).tolist()]
        first = min(steps)
        return None if first == math.inf else (int(first), steps.index(first))

    def mean(self, ranks: Ranks, steps: int) -> float:
        """The mean loss over all ranks and steps so far."""
        return float(sum_over_ranks(self._sum.clone())) / (ranks.world_size * max(steps, 1))
