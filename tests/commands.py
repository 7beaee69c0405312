"""The project's commands as processes, on the way that a user's take: from the first line of their script."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from warm import Warm, can_fork

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S, GRACE_S = 420, 3
HIDING = """# sitecustomize.py of a process that lacks packages
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def command(
    script: str, *arguments: object, ranks: int = 0, torchrun: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script of the project, as so many ranks if that is not 0.

    What needs neither torchrun nor an interpreter of its own is forked from a warm process; see warm.py.
    """
    line, env = [str(ROOT / script), *map(str, arguments)], environment_of(**environment)
    if not (ranks and torchrun) and can_fork(environment):
        ended = fork(line, env, ranks)
        out, errors = ended.communicate()
        return subprocess.CompletedProcess(line, ended.returncode or 0, out, errors)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    line = [sys.executable, *launcher, *line]
    return subprocess.run(line, capture_output=True, text=True, env=env, timeout=LIMIT_S, check=False)


def environment_of(**changes: str) -> dict[str, str]:
    """The environment of a process that is alone, on one thread, and finds the package in this source tree."""
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank of one node; of no ranks, one process that is told nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    whole = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    told = [whole | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    return [{name: str(value) for name, value in place.items()} for place in told] or [{}]


class Together:
    """Ranks that were started without torchrun, with those of subprocess.Popen's members that tests use.

    As torchrun does, it kills those that are still there some seconds after one has failed.

    Attributes:
        returncode: of the first that failed, or 0; None as long as one is there.
    """

    def __init__(self, processes: list[Warm]) -> None:
        self.processes, self.args, self.pid = processes, processes[0].args, processes[0].pid
        self._failed, self._end = 0, math.inf

    @property
    def returncode(self) -> int | None:
        codes = [process.poll() for process in self.processes]
        if not self._failed and any(codes):
            self._failed, self._end = next(filter(None, codes)), time.monotonic() + GRACE_S
        if None in codes and time.monotonic() > self._end:
            self.kill()
        return None if None in codes else self._failed

    def poll(self) -> int | None:
        return self.returncode

    def said(self) -> str:
        """Returns what all have written on stderr so far."""
        return "".join(process.said() for process in self.processes)

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def communicate(self, timeout: float = LIMIT_S) -> tuple[str, str]:
        """Waits for the end of all. Returns: what all wrote, the first process's first.

        Raises: subprocess.TimeoutExpired, with all killed.
        """
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        late = self.poll() is None
        if late:
            self.kill()
        out, errors = map("".join, zip(*(process.communicate(GRACE_S) for process in self.processes), strict=True))
        if late:
            raise subprocess.TimeoutExpired(self.args, timeout, out, errors)
        return out, errors


def fork(line: list[str], environment: dict[str, str], ranks: int = 0) -> Together:
    """Starts a script and its arguments as so many ranks, or one process if that is 0, from the warm one."""
    return Together([Warm(line, environment | place) for place in places(ranks)])


def succeed(
    script: str, *arguments: object, ranks: int = 0, torchrun: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script that has to end with exit code 0, its ranks without torchrun."""
    done = command(script, *arguments, ranks=ranks, torchrun=torchrun, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """The JSON object on the last line of stdout."""
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a mistake was refused."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
