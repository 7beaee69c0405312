"""Where a run's figures come from: command, code, versions, hardware, and what the bits of a step depend on."""

import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from en.config.meaning import decides
from en.config.reading import flatten
from en.config.schema import Config
from en.distributed.ranks import Ranks
from en.machine import git_state, package_version, processor
from en.means import Means
from en.norm import kernels
from en.threads import VARIABLE, waiting, were_chosen

Facts = dict[str, Any]
PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numpy", "pillow", "pydantic", "torchmetrics", "tensorboard")
PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = (".py", ".cpp", ".hpp")


def provenance(seed: int, ranks: Ranks, device: torch.device, workers: int, circumstances: Facts) -> Facts:
    """Lists command, commit, versions, hardware, seed, threads and circumstances of this start.

    Args:
        workers: of a loader of this rank.
    """
    commit, dirty = git_state()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "hardware": hardware(ranks, device),
        "seed": seed,
        "world_size": ranks.world_size,
        kernels.SWITCH: os.environ.get(kernels.SWITCH),
        "workers": workers,
        "waiting": waiting(),
        **circumstances,
    }


def circumstances(ranks: Ranks, device: torch.device, made_by: Mapping[str, str | None], compiled: bool) -> Facts:
    """What, besides the configuration and the data, the bits of a step depend on.

    Args:
        made_by: the libraries that make the images, with their versions.
        compiled: whether the network runs under torch.compile.
    Returns: ranks; processor, the CPU's or GPU's name; threads of torch in each rank; native, what of the normalizers
        runs as this package's own code; graphs, what of them is an operator of its in graphs of torch.compile, where
        there are any; torch, its version; code, the digest of this package's source; and made_by.
    """
    on_cpu = device.type == "cpu"
    return {
        "ranks": ranks.world_size,
        "processor": processor() if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "native": kernels.native_parts(device.type),
        **({"graphs": kernels.native_in_graphs(device.type)} if compiled else {}),
        "torch": str(torch.__version__),
        "code": code_digest(),
        **made_by,
    }


def ranks_facts(config: Config, data: Mapping[str, Any], made_by: Mapping[str, str | None]) -> Facts:
    """Lists what ranks that work together have to share: configuration, code, torch, data and what makes images."""
    keys = {key: value for key, value in flatten(config.complete()).items() if not decides(key, Means.PLACE)}
    software = {"code": code_digest(), "torch": str(torch.__version__), **made_by}
    return keys | software | flatten({"data": dict(data)})


@cache
def code_digest() -> str:
    """SHA-256 of this package's source files, by their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in SOURCES:
            digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def thread_remarks(device: torch.device) -> list[str]:
    """Says that other programs were given cores, where that is why a CPU computes with fewer threads than it has."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if device.type != "cpu" or not were_chosen() or threads >= cores:
        return []
    return [f"{threads_on_cores()}: other programs are busy there ({VARIABLE}={cores} takes all)"]


def hardware(ranks: Ranks, device: torch.device) -> str:
    """Processors, with the threads of a rank on them, or GPUs in words, e.g. '8 x NVIDIA H200'."""
    if device.type == "cuda":
        return f"{ranks.world_size} x {torch.cuda.get_device_name(device)}"
    return f"{threads_on_cores()} of {processor()}"


def threads_on_cores() -> str:
    """Says how many threads compute on how many cores: '1 thread on 2 cores'."""
    counts = {"thread": torch.get_num_threads(), "core": len(os.sched_getaffinity(0))}
    return " on ".join(f"{count} {noun}{'s' * (count > 1)}" for noun, count in counts.items())
