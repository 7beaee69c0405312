"""This process among the others that torchrun started, on one node or several."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from en.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Who this process is, as torchrun's environment says; one process alone without it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @staticmethod
    def from_environment() -> "Ranks":
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        values = (int(os.environ.get(name, default)) for name, default in names.items())
        return Ranks(*values)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    def default_workers(self) -> int:
        """Loader workers for each rank: this node's usable cores over its ranks, at least 1."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


def choose_device(wanted: str, ranks: Ranks) -> torch.device:
    """The device of this rank for the config's `device`. Raises UserError for a GPU that is not there."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(f"device={wanted}: expected a GPU for local rank {ranks.local_rank}, found {count}; try device=cpu")
    return torch.device("cuda", ranks.local_rank)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Joins the ranks (NCCL on GPUs, gloo on CPUs) when torchrun started this process, and leaves them at the end."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Adds up a tensor over all ranks, in place, and returns it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def average_buffers(model: nn.Module) -> None:
    """Gives every rank the mean over ranks of each floating-point buffer, so that all evaluate the same network."""
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = sum_over_ranks(torch.cat([buffer.flatten().float() for buffer in buffers])) / dist.get_world_size()
        for buffer, mean in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
