"""Commands as forks of one process that has imported what they need: most of a short command's time is imports.

The process has done nothing else, so that a fork of it differs from a new interpreter in its imports alone.
"""

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

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
    sys.argv, sys.path[0] = line, str(Path(line[0]).parent)
    runpy.run_path(line[0], run_name="__main__")


class Warm:
    """A started script, with those of subprocess.Popen's members that tests use; nothing is written to its stdin."""

    def __init__(self, line: list[str], environment: dict[str, str]) -> None:
        self.args = line
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._output = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in self._output:
            path.touch()
        self._process = FORKS.Process(target=run, args=(line, environment, Path.cwd(), self._output))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end. Returns: stdout and stderr. Raises: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        out, errors = (path.read_text() for path in self._output)
        return out, errors
