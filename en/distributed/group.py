"""The process group: how the ranks meet, on one node or several, and part."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from en.distributed.environment import env_number
from en.distributed.network import naming_unreachable_ranks
from en.distributed.ranks import Ranks
from en.errors import RunError, UserError


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
