"""The project's commands as processes, on the way that a user's take: from the first line of their script."""

import json
import os
import subprocess
import sys
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
    """Runs a script that has to end with exit code 0."""
    done = command(script, *arguments, ranks=ranks, **environment)
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
