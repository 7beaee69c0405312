"""Runs the parts, each as a process of pytest that has its time and not more, and prints what they found."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from en.benchmarks.timing import show
from gpu.parts import Part, stages

HERE = Path(__file__).parent
POLL_S = 0.1
GRACE_S = 2.0  # from the end that pytest-timeout makes of a part to the kill of one that does not hear it
LOG_LINES = 12  # of a part that failed


class Running:
    """A part that runs, with all processes that it starts.

    Args:
        seconds: that it may take.
        arguments: of pytest.
        folder: for what it prints and finds.
    """

    def __init__(self, name: str, part: Part, seconds: float, arguments: Sequence[str], folder: Path) -> None:
        print(f"{name}: {part.what}, at most {seconds:.0f} s", flush=True)
        self.name, self.seconds = name, seconds
        self.rows, self.log = folder / f"{name}.jsonl", folder / f"{name}.log"
        self.began = time.monotonic()
        given = ["--rows", str(self.rows), "--ends", str(time.time() + seconds), *arguments]
        line = [sys.executable, "-m", "pytest", str(HERE / part.test), *given]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def taken(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began

    def is_over(self) -> bool:
        """Tells whether it has ended or does not even end at its limit."""
        return self.process.poll() is not None or self.taken() > self.seconds + GRACE_S

    def kill(self) -> None:
        """Kills what is left of it; does not wait for a process that a GPU's driver does not let go."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)

    def result(self) -> dict[str, Any]:
        """Prints and returns what became of it and what it found."""
        taken, cut_off = self.taken(), self.taken() > self.seconds
        self.kill()
        lines = self.lines()
        failures = [line["failure"] for line in lines if "failure" in line]
        if self.process.returncode and not cut_off:
            failures.append(f"exit code {self.process.returncode}")
        tables: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if "table" in line:
                tables.setdefault(line["table"], []).append(line["row"])
        notes = [line["note"] for line in lines if "note" in line]
        words = self.log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:] if failures or cut_off else []
        for note in notes:
            print(f"{self.name}: {note}")
        for title, rows in tables.items():
            show(f"{self.name}: {title}", rows)
        how = "cut off at its limit" if cut_off else f"failed: {failures[0]}" if failures else "done"
        print("\n".join([f"{self.name}: {how}, {taken:.0f} s", *(f"    {line[:114]}" for line in words)]), flush=True)
        return {
            "seconds": taken,
            "limit": self.seconds,
            "exit code": self.process.returncode,
            "cut off": cut_off,
            "notes": notes,
            "failures": failures,
            "last words": words,
            "figures": {line["figure"]: line["value"] for line in lines if "figure" in line},
            "tables": tables,
        }

    def lines(self) -> list[dict[str, Any]]:
        """Reads what it found; a line that a kill cut short is none."""
        whole = self.rows.read_bytes().rpartition(b"\n")[0] if self.rows.is_file() else b""
        return [json.loads(text) for text in whole.splitlines()]


def run_parts(
    parts: Mapping[str, Part], share: float, ends: float, arguments: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs the parts, those that are not timed at the same time, then the others one by one.

    Args:
        share: of its seconds that each part may take.
        ends: when all have to be done, by time.monotonic(): no part may take longer than is left.
        arguments: of pytest.
        folder: an empty one.
    Yields: the name and the result of each part that has ended or was ended at its limit.
    """
    for stage in stages(list(parts), parts):
        running: list[Running] = []
        try:
            for name in stage:
                seconds = min(share * parts[name].seconds, ends - GRACE_S - time.monotonic())
                if seconds > 0:
                    running.append(Running(name, parts[name], seconds, arguments, folder))
            left = list(running)
            while left:
                time.sleep(POLL_S)
                for part in [part for part in left if part.is_over()]:
                    left.remove(part)
                    yield part.name, part.result()
        finally:
            for part in running:
                part.kill()
