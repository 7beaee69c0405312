"""Agreement of the ranks: on what they were started with, and on the network's bits."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from en.distributed.collectives import gather
from en.distributed.ranks import Ranks
from en.errors import RunError, UserError, shown


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
