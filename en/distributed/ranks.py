"""This process among those that torchrun started, on one node or several."""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from en.distributed.network import naming_unreachable_ranks
from en.distributed.tasks import refuse_tasks
from en.errors import RunError, UserError, shown

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
        """Whether this is rank 0, which writes files and reports."""
        return self.rank == 0

    def share_of_cores(self) -> int:
        """This node's usable cores over its ranks, at least 1."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


def env_number(name: str, default: int | str, low: int, high: int) -> int:
    """Reads a whole number from the environment. Raises UserError unless it is from `low` to `high`."""
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{name}={shown(text)} in the environment: expected a whole number from {low} to {high}")
    return int(text)


def only_process() -> Ranks:
    """Reads the environment of a command that runs as one process. Raises UserError, the same on all, for several."""
    refuse_tasks("one process, without srun or mpirun")
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        refusal = UserError(f"WORLD_SIZE={ranks.world_size}: expected one process, without torchrun")
        refusal.common = True
        raise refusal
    return ranks


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


@contextmanager
def process_group(ranks: Ranks, device: torch.device, timeout_s: float) -> Iterator[dist.ProcessGroup | None]:
    """Joins the other ranks (NCCL on GPUs, gloo on CPUs) if torchrun started this process, and leaves them at the end.

    Args:
        timeout_s: seconds that a communication with other ranks may take.
    Returns: a gloo group of all ranks, for small messages that no device has to wait for; None for a single process.
    Raises: UserError, RunError where they do not meet.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield None
        return
    env_number("MASTER_PORT", "", 1, 65535)
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(
            "MASTER_ADDR is not set in the environment, but WORLD_SIZE is: expected the name of rank 0's machine"
        )
    timeout = timedelta(seconds=timeout_s)
    own: dict[str, Any] = {}
    try:
        with naming_unreachable_ranks(ranks.rank, several_nodes=ranks.world_size > ranks.local_world_size):
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                own = {"store": fresh_store(ranks, timeout_s), "rank": ranks.rank, "world_size": ranks.world_size}
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout, **own)
            group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup)
        yield group
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def connect() -> TCPStore:
    """Connects to the store that torchrun's agent, or rank 0, serves."""
    address, port = os.environ["MASTER_ADDR"], env_number("MASTER_PORT", "", 1, 65535)
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False)


def fresh_store(ranks: Ranks, timeout_s: float) -> Store:
    """A part of the agent's store that only the ranks of this start use.

    torchrun --max-restarts restarts the ranks with the store of the previous start, which holds the addresses of dead
    processes. So each rank publishes a token of its own, rank 0 lists all of them, and a rank accepts the list that
    contains its token: only a rank 0 that is alive at the same time can have made it.

    Raises: RunError if the ranks have not met within `timeout_s`.
    """
    store, token, deadline = connect(), uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"en/token/{ranks.rank}", token)
    keys = [f"en/token/{rank}" for rank in range(ranks.world_size)]
    while time.monotonic() < deadline:
        if ranks.is_first:
            tokens = [store.get(key).decode() if store.check([key]) else "" for key in keys]
            store.set("en/list", json.dumps([token, tokens]))
        if store.check(["en/list"]):
            name, tokens = json.loads(store.get("en/list"))
            if tokens[ranks.rank] == token:
                store.set(f"en/{name}/met/{ranks.rank}", "")
                if not ranks.is_first or store.check([f"en/{name}/met/{rank}" for rank in range(ranks.world_size)]):
                    return PrefixStore(f"en/{name}", store)
        time.sleep(0.02)
    raise RunError(f"not all {ranks.world_size} ranks met within {timeout_s} s (distributed.timeout_s)")


def gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of the ranks, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def refuse_differences(facts: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Raises UserError that names each fact (a key, code, a version, data) that differs between ranks, by rank."""
    digests = gather(hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest(), group)
    if len(set(digests)) == 1:
        return
    every = gather(facts, group)
    keys = dict.fromkeys(key for own in every for key in own)
    differing = [key for key in keys if len({repr(own.get(key)) for own in every}) > 1]
    problems = []
    for key in differing:
        holders: dict[str, list[int]] = {}
        for rank, own in enumerate(every):
            holders.setdefault(repr(own.get(key)), []).append(rank)
        named = (f"{shown(every[r[0]].get(key))} on rank {', '.join(map(str, r))}" for r in holders.values())
        problems.append(f"{key} is {', '.join(named)}")
    error = UserError(f"the ranks differ: {'; '.join(problems)}: expected the same on all")
    error.common = True
    raise error


def refuse_drift(networks: Sequence[nn.Module], ranks: Ranks, group: dist.ProcessGroup | None) -> None:
    """Raises RunError that names the ranks whose weights or buffers differ from rank 0's in any bit."""
    if group is None:
        return
    digest = hashlib.sha256()
    for network in networks:
        for value in network.state_dict().values():
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    digests = gather(digest.hexdigest(), group)
    adrift = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if adrift:
        named = ", ".join(map(str, adrift))
        raise RunError(f"the weights or buffers of rank {named} differ from rank 0's: faulty memory, device or network")


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over all ranks, in place, and returns it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in its place."""
    return sum_over_ranks(values).div_(dist.get_world_size()) if dist.is_initialized() else values


def average_buffers(model: nn.Module) -> None:
    """Averages each floating-point buffer over the ranks, so that all evaluate the same network."""
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = mean_over_ranks(torch.cat([buffer.flatten().float() for buffer in buffers]))
        for buffer, mean in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def only_deterministic() -> None:
    """Restricts torch to algorithms that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
