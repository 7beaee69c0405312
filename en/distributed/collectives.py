"""Values of all ranks: gathered, summed, averaged."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of the ranks, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place, and returns it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in its place."""
    return sum_over_ranks(values).div_(dist.get_world_size()) if dist.is_initialized() else values


def gather_rows(row: Tensor) -> list[Tensor]:
    """Every rank's tensor, of one shape and type, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [row]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return rows
