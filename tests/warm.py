"""Commands as forks of one process that has imported what they need: most of a short command's time is imports.

The process has done nothing else, so that a fork of it differs from a new interpreter in its imports, the order of sets
of strings, and how it ends: what comes before a script's first line, or after its last, is tested by those that
torchrun starts and by those that are started cold.
"""

import atexit
import contextlib
import math
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil

READ_AT_START = ("PYTHON", "OMP_", "TMPDIR", "LC_", "TRITON_")
"""Variables of the environment, by their beginnings, that matter before a script's first line."""

IMPORTED = ["en.commands.ablate", "en.commands.eval", "en.commands.prepare", "en.commands.report", "en.commands.train"]
IMPORTED += ["en.build", "en.data.ffcv.loader", "en.evaluation.score", "en.training.run"]

os.environ["OMP_NUM_THREADS"] = "1"  # libraries read it when they are imported
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)


def run(line: list[str], environment: dict[str, str], folder: Path, output: list[Path]) -> None:
    """Runs the script `line[0]` in a session of its own, stdout and stderr into files."""
    os.setsid()
    for number, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # Python's default, as if this were nobody's child
    random.seed()
    np.random.seed()
    sys.argv, sys.path[0] = line, str(Path(line[0]).parent)
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def end(process: BaseProcess, folder: str) -> None:
    """Kills what a test has left running, and removes its output."""
    if process.exitcode is None and process.pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def can_fork(environment: Iterable[str]) -> bool:
    """Whether a command with these changes of the environment can be forked."""
    return not any(name.startswith(READ_AT_START) for name in environment)


class Warm:
    """A started script, with those of subprocess.Popen's members that tests use; nothing is written to its stdin."""

    def __init__(self, line: list[str], environment: dict[str, str]) -> None:
        self.args = line
        folder = tempfile.mkdtemp()
        self._output = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in self._output:
            path.touch()
        self._process = FORKS.Process(target=run, args=(line, environment, Path.cwd(), self._output))
        self._process.start()
        weakref.finalize(self, end, self._process, folder)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def said(self) -> str:
        """Returns what it has written on stderr so far."""
        return self._output[1].read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it and what it has started, but for what is in a session of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end and for that of all that it has started. Returns: stdout and stderr.

        Raises: subprocess.TimeoutExpired.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        self._process.join(timeout)
        while self._process.exitcode is None or self.has_left_processes():
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.05)
        out, errors = (path.read_text() for path in self._output)
        return out, errors

    def has_left_processes(self) -> bool:
        """Whether any process of its session is still there."""
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    return True
        return False
