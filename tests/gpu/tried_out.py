"""Parts that fail and hang on purpose: for tests/test_gpu_check.py. No name that pytest looks for by itself."""

import os
import signal
import time

from gpu.results import Report


def test_works(report: Report) -> None:
    report.row("a table", name="one", value=1.0)
    report.figure("killed", True)
    report.note("a note")


def test_fails(report: Report) -> None:
    with report.attempt("a number"):
        float("none")
    report.row("a table", name="after it", value=2.0)


def test_crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_hangs(report: Report) -> None:
    child = os.fork()
    if child:
        report.row("a table", pid=child)
        with report.path.open("a") as file:
            file.write('{"table": "a line that is cut sh')
    time.sleep(600)


def test_hears_nothing() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
