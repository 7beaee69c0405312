"""The tasks of a job step that srun or mpirun starts: several of them are no ranks of one run without torchrun."""

import os
import re

from en.errors import UserError

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
