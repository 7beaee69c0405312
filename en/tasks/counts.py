"""Whole numbers counted over a set, which are the same on any number of ranks and in any order."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Counts(Metric):  # type: ignore[misc]
    """Counts as int64, summed over all ranks: (n, m), for what an evaluation keeps beside its scores (see Scores)."""

    counts: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(rows, columns, dtype=torch.int64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> "Counts":
        """Leaves the counts whole numbers."""
        return self

    def compute(self) -> Tensor | dict[str, Tensor]:
        return self.counts
