"""A training run's images/s by its threads, its loader's and how they wait, alone and beside a busy process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from en.benchmarks.timing import Measured, median
from en.errors import RunError
from en.machine import ROOT
from en.progress import Progress
from en.runs.read import read_log
from en.threads import VARIABLE, WAITING

CORES = len(os.sched_getaffinity(0))
CHOSEN = "as chosen"
SETTINGS: dict[str, tuple[dict[str, str], list[str]]] = {
    CHOSEN: ({}, []),
    "a thread and a worker a core": ({VARIABLE: str(CORES)}, [f"data.workers={CORES}"]),
    "a thread a core, one worker": ({VARIABLE: str(CORES)}, ["data.workers=1"]),
    "the same, passive": ({VARIABLE: str(CORES), "OMP_WAIT_POLICY": "passive"}, ["data.workers=1"]),
    "one thread": ({VARIABLE: "1"}, []),
}
"""Environment and keys by name."""

PLACES = {"alone": 0, "beside one": 1}
"""Numbers of processes that are busy meanwhile."""

SPIN = "while True: pass"


def compare_threads(recipe: Path, data: Path, rounds: int) -> list[Measured]:
    """Images/s of the recipe under each of SETTINGS, in turns, each run a process.

    Returns: a row a setting, with the median of the rounds alone and beside a process that spins, each also as a share
        of the best there, and the load of the machine.
    """
    speeds: dict[tuple[str, str], list[float]] = {(name, place): [] for name in SETTINGS for place in PLACES}
    loads: dict[tuple[str, str], list[float]] = {key: [] for key in speeds}
    with Progress("threads", rounds * len(speeds)) as progress:
        for _ in range(rounds):
            for place, others in PLACES.items():
                with busy(others):
                    for name in SETTINGS:
                        speeds[name, place].append(speed(recipe, data, name))
                        loads[name, place].append(os.getloadavg()[0])
                        progress.advance()
    best = {place: max(median(speeds[name, place]) for name in SETTINGS) for place in PLACES}
    return [
        {"setting": name}
        | {place: median(speeds[name, place]) for place in PLACES}
        | {f"/ best {place}": median(speeds[name, place]) / best[place] for place in PLACES}
        | {f"load {place}": median(loads[name, place]) for place in PLACES}
        for name in SETTINGS
    ]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that never wait, inside `with`."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def speed(recipe: Path, data: Path, setting: str) -> float:
    """Images/s of a run, median of its epochs but the first. Raises: RunError where it fails."""
    environment, keys = SETTINGS[setting]
    env = {name: value for name, value in os.environ.items() if name not in (VARIABLE, *WAITING)} | environment
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "en.commands.train", str(recipe), f"data.root={data}", f"run_dir={folder}/run"]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run([*line, *keys], env=env | {"PYTHONPATH": paths}, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"a run with {setting} ended with exit code {done.returncode}: {done.stderr[-500:]}")
        return median([row.images_per_second or 0 for row in read_log(Path(folder) / "run")[1:]])
