"""Processes that are started, watched and killed: parts of scripts/gpu_check.py, and runs of train.py."""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from en.machine import ROOT


@dataclass
class Process:
    """A script of this project that runs.

    Attributes:
        pid: its process id.
        log: the file with what it prints.
        code: its exit code once it has ended; minus the signal's number if one ended it.
    """

    pid: int
    log: Path
    code: int | None = None

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def kill(self, group: bool) -> None:
        """Kills it, or all processes of the group that it leads, and waits for its end."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.is_file() else []
        return lines[-1] if lines else ""


def start(script: str, arguments: Sequence[str], log: Path, fork: bool, leads_group: bool) -> Process:
    """Starts a script of this project.

    Args:
        fork: as a fork of this process, with all that it has imported, instead of a new interpreter. Not for a process
            that has used a GPU or computed with several threads.
        leads_group: whether it leads a new group of processes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        become(str(ROOT / script), arguments, log, fork, leads_group)
    return Process(pid, log)


def become(path: str, arguments: Sequence[str], log: Path, fork: bool, leads_group: bool) -> NoReturn:
    """Makes this process one that runs a script, and ends it with the script's exit code."""
    code = 1
    try:
        if leads_group:
            os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if not fork:
            os.execv(sys.executable, [sys.executable, path, *arguments])
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
