"""How many threads a process on a CPU computes with, chosen before torch is loaded.

OpenMP's threads wait for one another after each operation. One that shares its core with another program keeps all
waiting, and those that wait spin on cores that the program and the loader want: beside one busy process, two threads on
two cores trained at less than half of the speed of one (docs/measurements.md). How long they spin is left to the
library: no shorter time was faster.
"""

import os
import time
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
LOOK_S = 0.1
MOSTLY_IDLE = 0.5  # share of the time in which a core that counts as idle is idle
IDLE, IOWAIT = 3, 4  # fields of a core's line in /proc/stat, man 5 proc_stat

Ticks = dict[int, list[int]]
_chosen = False


def choose_threads() -> None:
    """Sets OMP_NUM_THREADS to the cores that other programs leave idle, at least half of those that may be used.

    Half, because who is busy for this moment need not be so for days. What the environment says already wins, and the
    ranks of a launcher are left to it.
    """
    global _chosen
    if VARIABLE in os.environ or os.environ.get("WORLD_SIZE", "1") != "1":
        return
    cores = os.sched_getaffinity(0)
    before = ticks()
    time.sleep(LOOK_S)
    os.environ[VARIABLE] = str(max(len(cores) // 2, idle_of(cores, before, ticks()), 1))
    _chosen = True


def were_chosen() -> bool:
    """Tells whether the number of threads is `choose_threads`'s."""
    return _chosen


def keep_others() -> None:
    """Notes that the number of threads is no longer `choose_threads`'s."""
    global _chosen
    _chosen = False


def waiting() -> dict[str, str]:
    """The variables of the environment that say how threads wait for one another; none: as the library does."""
    return {name: os.environ[name] for name in WAITING if name in os.environ}


def ticks() -> Ticks:
    """Clock ticks of each core since the start by what it did; none where the system does not tell."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return {}
    cores = {name[3:]: counts for name, *counts in lines if name.startswith("cpu")}
    return {int(core): [int(count) for count in counts] for core, counts in cores.items() if core}


def idle_of(cores: set[int], before: Ticks, after: Ticks) -> int:
    """Counts cores that were mostly idle between two readings; one of which nothing is known counts as idle."""
    return sum(idle_share(before.get(core, []), after.get(core, [])) >= MOSTLY_IDLE for core in cores)


def idle_share(before: list[int], after: list[int]) -> float:
    """The share of the time between two readings in which a core had nothing to do."""
    passed = [end - start for start, end in zip(before, after, strict=True)] if len(before) == len(after) else []
    return (passed[IDLE] + passed[IOWAIT]) / sum(passed) if sum(passed) > 0 else 1.0
