"""A rank's device, and the algorithms that it may use."""

import os

import torch

from en.distributed.ranks import Ranks
from en.errors import UserError


def choose_device(wanted: str, ranks: Ranks) -> torch.device:
    """This rank's device for the key `device`. Raises UserError if there is no GPU for it."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count < ranks.local_world_size:
        raise UserError(
            f"device={wanted}: expected a GPU for each of the {ranks.local_world_size} local ranks, found {count}; "
            "try device=cpu"
        )
    return torch.device("cuda", ranks.local_rank)


def only_deterministic() -> None:
    """Restricts torch to algorithms that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
