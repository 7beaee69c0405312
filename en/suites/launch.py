"""The runs of a suite as processes: so many at once, on GPUs of their own, stopped and resumed together."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from en.errors import RESUME_ME, Stopped, UserError, in_one_line
from en.machine import ROOT
from en.progress import Progress, tell
from en.suites.failures import forget_failure, keep_failure, was_stopped
from en.suites.plan import Planned
from en.suites.state import epochs_of, epochs_planned, label_of, result_of
from en.threads import VARIABLE

LOOK_S = 0.5
START = "== "  # before the command in a log
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Launcher:
    """How runs are started.

    Attributes:
        at_once: runs at the same time.
        ranks: processes of each.
        gpus: of this machine; 0 for a machine without.
    """

    at_once: int
    ranks: int
    gpus: int

    def __post_init__(self) -> None:
        if self.gpus and self.at_once * self.ranks > self.gpus:
            raise UserError(
                f"--at-once {self.at_once} --ranks {self.ranks}: expected at most {self.gpus} processes, one a GPU"
            )

    def start(self, run: Planned, slot: int) -> subprocess.Popen[bytes]:
        """Starts a run, or resumes it; its command and what it prints are appended to FOLDER.log.

        It leads a session of its own: a Ctrl-C in the terminal reaches this process alone, which asks the runs to stop.
        """
        launcher = [sys.executable]
        if self.ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        line = [*launcher, "-m", "en.commands.train", str(run.base), *run.overrides, "--resume", "auto"]
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        forget_failure(run)
        with log_of(run).open("ab") as log:
            log.write(f"{START}{shlex.join(line)}\n".encode())
            log.flush()
            return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(slot),
                                    start_new_session=True)  # fmt: skip

    def environment(self, slot: int) -> dict[str, str]:
        """A run's environment: this package, wherever it is started, and GPUs of its own or its share of the cores."""
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.visible()[slot * self.ranks : (slot + 1) * self.ranks])
        if (processes := self.at_once * self.ranks) > 1:  # one alone chooses by itself
            env.setdefault(VARIABLE, str(max(1, len(os.sched_getaffinity(0)) // processes)))
        return env

    def visible(self) -> list[str]:
        """Names of the GPUs that this process may use."""
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        return given.split(",") if given else [str(number) for number in range(self.gpus)]


def launcher_for(at_once: int, ranks: int | None) -> Launcher:
    """A launcher of this machine; by default all its GPUs, or one process a run without any."""
    gpus = torch.cuda.device_count()
    return Launcher(at_once, ranks or max(1, gpus // at_once), gpus)


def log_of(run: Planned) -> Path:
    """Returns the file that a run's messages go to."""
    return run.folder.parent / f"{run.folder.name}.log"


def latest_log(run: Planned) -> str:
    """Reads what a run's latest start has printed, after the line of its command."""
    return log_of(run).read_text(errors="replace").rpartition(START)[2].partition("\n")[2]


def last_line(log: str) -> str:
    """The last line of a start that names an error, or else its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return in_one_line((errors or lines or ["nothing was printed"])[-1])


def as_finished(run: Planned) -> str:
    """Says that a run is finished, with its score."""
    score, label = result_of(run), label_of(run)
    return "finished" if score is None else f"finished, {label.text} {score:.2f} {label.unit}".strip()


class Stop:
    """Remembers, inside `with`, the signal that asked the suite to stop; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal = ""

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


class Pool:
    """The runs of a suite as processes. Left by an error, no run goes on alone: each writes its checkpoint and ends.

    Attributes:
        failed: runs that ended with an error.
        stopped: runs that something else than this process stopped or killed.
    """

    def __init__(self, runs: Sequence[Planned], launcher: Launcher) -> None:
        self.failed: list[Planned] = []
        self.stopped: list[Planned] = []
        self._launcher, self._waiting, self._stopping = launcher, list(runs), False
        self._running: dict[int, tuple[Planned, subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()

    @property
    def busy(self) -> bool:
        """True while a run waits or has not ended."""
        return bool(self._waiting or self._running)

    def fill(self) -> None:
        """Starts runs that wait, as many as there is room for."""
        for slot in sorted(set(range(self._launcher.at_once)) - set(self._running))[: len(self._waiting)]:
            run = self._waiting.pop(0)
            self._running[slot] = run, self._launcher.start(run, slot)
            tell(f"{run.name}: started, {len(self._waiting)} to go; its own progress: {log_of(run)}")

    def collect(self) -> None:
        """Takes out the runs that have ended."""
        for slot, (run, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[slot]
            if code and not self._stopping:
                self._take_failed(run, code)
            else:
                tell(f"{run.name}: {'stopped' if code else as_finished(run)}")

    def _take_failed(self, run: Planned, code: int) -> None:
        """Keeps why a run failed, unless it was stopped from outside: then the next start resumes it."""
        log = latest_log(run)
        stopped = was_stopped(code, log)
        (self.stopped if stopped else self.failed).append(run)
        if not stopped:
            keep_failure(run, code, last_line(log))
        tell(f"{run.name}: {'stopped' if stopped else 'failed'} with exit code {code}: {last_line(log)}")

    def stop(self) -> None:
        """Asks the runs to write a checkpoint and end, once, and starts no more."""
        if self._stopping:
            return
        self._stopping = True
        self._waiting.clear()
        for _, process in self._running.values():
            process.send_signal(signal.SIGTERM)
        tell(f"waiting for the checkpoints of {len(self._running)} runs")


def run_all(runs: Sequence[Planned], launcher: Launcher) -> tuple[list[Planned], list[Planned]]:
    """Runs each to its end, one after another or several at once, past those that fail.

    Returns: the runs that failed, and those that were stopped or killed from outside.
    Raises: Stopped after a signal, when all runs have ended with a checkpoint.
    """
    epochs = math.ceil(sum(map(epochs_planned, runs)))
    bar = Progress("epochs of the suite", epochs, before=int(sum(map(epochs_of, runs))))
    with Stop() as stop, bar as progress, Pool(runs, launcher) as pool:
        while pool.busy:
            pool.fill()
            time.sleep(LOOK_S)
            pool.collect()
            if stop.signal:
                pool.stop()
            progress.advance(int(sum(map(epochs_of, runs))) - progress.done)
    if stop.signal:
        raise Stopped(f"stopped by {stop.signal}: the same command resumes the suite (exit code {RESUME_ME})")
    return pool.failed, pool.stopped
