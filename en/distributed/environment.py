"""Reads what torchrun, srun and mpirun set in the environment: numbers, and tasks that are no ranks."""

import os
import re

from en.errors import UserError, shown

SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Tasks of the step that this process is one of, by SLURM, Open MPI, MPICH and Intel MPI, MVAPICH.

SLURM_NTASKS is none of them: it is the job's, and set in the shell of a job that has not started a step.
"""
TORCHRUN = "torchrun in one task a node (srun --ntasks-per-node 1 torchrun --nnodes N ..., see scripts/slurm.sh)"


def refuse_tasks(expected: str = TORCHRUN) -> None:
    """Raises UserError in one of several tasks that no torchrun has made ranks: each would run all of it, alone.

    Args:
        expected: what is to be started instead.
    """
    if "WORLD_SIZE" in os.environ:
        return
    for name in SIZES:
        size = os.environ.get(name, "")
        if re.fullmatch("[0-9]{1,9}", size) and int(size) > 1:
            raise UserError(
                f"{name}={size} in the environment, but not WORLD_SIZE: {size} tasks that know nothing of each other: "
                f"expected {expected}; env -u {name} starts a process of its own all the same"
            )


def env_number(name: str, default: int | str, low: int, high: int) -> int:
    """Reads a whole number from the environment. Raises UserError unless it is from `low` to `high`."""
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{name}={shown(text)} in the environment: expected a whole number from {low} to {high}")
    return int(text)
