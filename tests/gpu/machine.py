"""Finds a machine's GPU, the card that it is, and packages, for scripts/gpu_check.py."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from textwrap import fill
from typing import Any

from en.errors import UserError
from en.machine import git_state, package_version, processor
from gpu.parts import PARTS

OLDEST_TORCH = (2, 11)
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # where it is not the name under which a package is imported
OPTIONAL = ("triton", "ffcv")
OF_TESTS = {"pytest": "pytest", "pytest_timeout": "pytest-timeout"}
FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


def refuse_unusable(device: str, tiny: bool) -> None:
    """Raises UserError unless the parts can run here."""
    if device == "cpu" and not tiny:
        raise UserError("--device cpu: expected --tiny too, because the sizes are those of a GPU")
    for module, name in OF_TESTS.items():
        if find_spec(module) is None:
            raise UserError(f"{name}: not installed: expected pytest and pytest-timeout, which run the parts")
    if find_spec("torch") is None:
        raise UserError("torch: expected version 2.11 or later, found none")
    import torch

    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise UserError(f"torch {torch.__version__}: expected version 2.11 or later")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: expected a GPU, found none (--device cpu --tiny tries the parts out)")


def facts(device: str, tiny: bool) -> dict[str, Any]:
    """Command, commit, hardware and versions."""
    from en.benchmarks.timing import hardware

    commit, dirty = git_state()
    return {
        "command": shlex.join(sys.argv),
        "git_commit": commit,
        "git_dirty": dirty,
        "hardware": hardware(device, len(os.sched_getaffinity(0))),
        "card": card(),
        "processor": f"{len(os.sched_getaffinity(0))} cores of {processor()}",
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in wanted()},
        "tiny": tiny,
    }


def wanted() -> list[str]:
    """Every package that a part can use."""
    return list(dict.fromkeys(["torch", *OPTIONAL, *(name for part in PARTS.values() for name in part.needs)]))


def version_of(name: str) -> str | None:
    """A package's version; None where it cannot be imported."""
    if find_spec(name) is None:
        return None
    return package_version(DISTRIBUTIONS.get(name, name)) or "of an unknown version"


def tell_packages(facts: dict[str, Any], names: Sequence[str]) -> None:
    """Prints hardware and packages, and which parts are skipped for which packages."""
    found = {name: version for name, version in facts["packages"].items() if version is not None}
    missing = [name for name in facts["packages"] if name not in found]
    print(
        fill(
            f"{facts['hardware']}; {facts['processor']}; {facts['card'] or 'no nvidia-smi'}",
            120,
            subsequent_indent="  ",
        )
    )
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    print(fill(f"packages: {listed}; missing: {', '.join(missing) or 'none'}", 120, subsequent_indent="  "))
    for name in names:
        if PARTS[name].missing():
            print(f"{name}: skipped: needs {', '.join(PARTS[name].missing())}")
    if facts["tiny"]:
        print("--tiny: no figure means anything")
    sys.stdout.flush()


def card() -> str:
    """Name, driver, memory, clocks, power and temperature now; nothing where nvidia-smi is missing."""
    try:
        line = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
    names = ["", "driver", "memory", "SM clock", "at most", "memory clock", "power", "temperature"]
    return ", ".join(f"{name} {value}".strip() for name, value in zip(names, values, strict=False))
