"""This process among those that torchrun started, on one node or several."""

import os
from dataclasses import dataclass

from en.distributed.environment import env_number, refuse_tasks
from en.errors import UserError

MOST_RANKS = 10**6


@dataclass(frozen=True)
class Ranks:
    """This process's numbers, from torchrun's environment; a single process without it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @staticmethod
    def from_environment() -> "Ranks":
        """Reads the environment. Raises UserError for numbers that are invalid or inconsistent; see refuse_tasks."""
        refuse_tasks()
        if "WORLD_SIZE" in os.environ and "RANK" not in os.environ:
            raise UserError("RANK is not set, but WORLD_SIZE is: expected both, as torchrun sets them, or neither")
        size, local_size = env_number("WORLD_SIZE", 1, 1, MOST_RANKS), env_number("LOCAL_WORLD_SIZE", 1, 1, MOST_RANKS)
        return Ranks(
            env_number("RANK", 0, 0, size - 1), size, env_number("LOCAL_RANK", 0, 0, local_size - 1), local_size
        )

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes files and reports."""
        return self.rank == 0

    def share_of_cores(self) -> int:
        """This node's usable cores over its ranks, at least 1."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


def only_process() -> Ranks:
    """Reads the environment of a command that runs as one process. Raises UserError, the same on all, for several."""
    refuse_tasks("one process, without srun or mpirun")
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        refusal = UserError(f"WORLD_SIZE={ranks.world_size}: expected one process, without torchrun")
        refusal.common = True
        raise refusal
    return ranks
