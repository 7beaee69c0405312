"""The project's commands as processes, on the way that a user's take: from the first line of their script."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from warm import Warm

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 420
HIDING = """# sitecustomize.py of a process that lacks packages
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def command(script: str, *arguments: object, ranks: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of the project; under torchrun when `ranks` is given, else, if it can be, in a warm process."""
    line, env = [str(ROOT / script), *map(str, arguments)], environment_of(**environment)
    if not ranks and not any(name.startswith("PYTHON") for name in environment):
        process = Warm(line, env)
        out, errors = process.communicate(LIMIT_S)
        return subprocess.CompletedProcess(line, process.poll() or 0, out, errors)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    line = [sys.executable, *launcher, *line]
    return subprocess.run(line, capture_output=True, text=True, env=env, timeout=LIMIT_S, check=False)


def environment_of(**changes: str) -> dict[str, str]:
    """The environment of a process that is alone, on one thread, and finds the package in this source tree."""
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def succeed(script: str, *arguments: object, ranks: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that has to end with exit code 0; as ranks in the environment that torchrun makes, without it."""
    line, env = [str(ROOT / script), *map(str, arguments)], environment_of(**environment)
    if not ranks:
        done = command(script, *arguments, **environment)
    else:
        done = together([Warm(line, env | place) for place in places(ranks)])
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank of one node."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    whole = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    ranks_apart = [whole | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    return [{name: str(value) for name, value in place.items()} for place in ranks_apart]


def together(processes: list[Warm]) -> subprocess.CompletedProcess[str]:
    """Waits for all, kills the others when one fails. Returns: the first exit code but 0, what all wrote."""
    end = time.monotonic() + LIMIT_S
    while (codes := {process.poll() for process in processes}) <= {0, None} and None in codes:
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    for process in processes:
        process.kill()
    outputs = [process.communicate() for process in processes]
    code = next((process.poll() for process in processes if process.poll()), 0)
    return subprocess.CompletedProcess([], code or 0, *("".join(parts) for parts in zip(*outputs, strict=True)))


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
