"""Runs the parts one after another, each in its time, prints what they find as it comes, and keeps all as JSON."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from en.benchmarks.gpu.parts import MINUTES, PARTS, stages
from en.benchmarks.gpu.process import Process, start
from en.benchmarks.gpu.targets import loading_rows, target_rows
from en.benchmarks.timing import show, write
from en.errors import RunError

POLL_S = 0.1
LOG_LINES = 12  # of a part that failed


@dataclass
class Running:
    """A part that runs.

    Attributes:
        seconds: that it may take.
        rows: the file that it appends to.
        lines: what was read from there.
        unshown: rows of the table that is not complete yet, and its title.
        read: bytes of the file that were read.
        cut_off: whether it was ended at its limit.
    """

    name: str
    process: Process
    rows: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    unshown: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""
    read: int = 0
    cut_off: bool = False

    def collect(self) -> None:
        """Reads and prints what the part has found since."""
        whole = self.rows.read_bytes().rpartition(b"\n")[0] if self.rows.is_file() else b""
        new, self.read = whole[self.read :], len(whole)
        for text in new.decode().split("\n"):
            if text:
                self.lines.append(json.loads(text))
                self.take(self.lines[-1])

    def take(self, line: dict[str, Any]) -> None:
        if line.get("table", self.title) != self.title:
            self.flush()
        if "table" in line:
            self.title = line["table"]
            self.unshown.append(line["row"])
        elif "note" in line:
            print(f"{self.name}: {line['note']}", flush=True)
        elif "failure" in line:
            print(f"{self.name}: failed: {line['failure']}", flush=True)

    def flush(self) -> None:
        """Prints the table as far as it has come."""
        if self.unshown:
            show(f"{self.name}: {self.title}", self.unshown)
        self.unshown = []

    def failures(self) -> list[str]:
        """What went wrong in it."""
        found = [line["failure"] for line in self.lines if "failure" in line]
        ended_badly = self.process.code != 0 and not self.cut_off
        return [*found, f"exit code {self.process.code}"] if ended_badly else found

    def result(self) -> dict[str, Any]:
        """What became of it."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            if "table" in line:
                tables.setdefault(line["table"], []).append(line["row"])
        return {
            "seconds": time.monotonic() - self.started,
            "limit": self.seconds,
            "exit code": self.process.code,
            "cut off": self.cut_off,
            "notes": [line["note"] for line in self.lines if "note" in line],
            "failures": self.failures(),
            "figures": {line["figure"]: line["value"] for line in self.lines if "figure" in line},
            "tables": tables,
        }


def conduct(
    names: list[str], minutes: float, arguments: list[str], fork: bool, facts: dict[str, Any], out: Path | None
) -> None:
    """Runs the named parts and prints the table of targets.

    Args:
        minutes: that all parts together would take; each gets its share of them.
        arguments: of scripts/gpu_check.py that every part is given.
        facts: hardware and the like, for the JSON file.
        out: the JSON file; written anew after every part.
    Raises: RunError at the end where a part failed in whole or in part; not for one that was cut off at its limit.
    """
    report: dict[str, Any] = {**facts, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(names):
            running: list[Running] = []
            try:
                for name in stage:
                    running.append(launch(name, minutes / MINUTES, arguments, fork, Path(folder)))
                for part in watch(running):
                    report["parts"][part.name] = part.result()
                    write(out, report)
            finally:
                for part in running:
                    part.process.kill(group=True)
    figures = {k: v for part in report["parts"].values() for k, v in part["figures"].items()}
    loading, rows = loading_rows(figures), target_rows(figures, facts["tiny"])
    if loading:
        show("loading against what training ResNet50 with EN takes in on the GPU", loading)
    show("targets, on an H200 or alike", rows)
    write(out, {**report, "loading": loading, "targets": rows})
    failed = [f"{name}: {text}" for name, part in report["parts"].items() for text in part["failures"]]
    if failed:
        raise RunError(f"{len(failed)} failures; the first: {failed[0]}")


def launch(name: str, share: float, arguments: list[str], fork: bool, folder: Path) -> Running:
    """Starts a part."""
    rows, seconds = folder / f"{name}.jsonl", PARTS[name].seconds * share
    print(f"{name}: {PARTS[name].what}, at most {seconds:.0f} s", flush=True)
    own = ["--part", name, "--rows", str(rows), "--seconds", str(seconds)]
    log = folder / f"{name}.log"
    return Running(name, start("scripts/gpu_check.py", [*own, *arguments], log, fork, leads_group=True), rows, seconds)


def watch(running: list[Running]) -> Iterator[Running]:
    """Yields each part once it has ended, or was ended at its limit, with all it has found."""
    left = list(running)
    while left:
        time.sleep(POLL_S)
        for part in list(left):
            ended = part.process.ended()
            part.cut_off = not ended and time.monotonic() - part.started > part.seconds
            if ended or part.cut_off:
                part.process.kill(group=True)
            part.collect()
            if ended or part.cut_off:
                part.flush()
                tell_end(part)
                left.remove(part)
                yield part


def tell_end(part: Running) -> None:
    """Prints how a part ended, and the end of its log where it failed."""
    taken = f"{time.monotonic() - part.started:.0f} s"
    if part.cut_off:
        print(f"{part.name}: cut off at its limit, {taken}", flush=True)
    elif part.process.code == 0:
        print(f"{part.name}: done in {taken}", flush=True)
    else:
        lines = part.process.log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
        print(f"{part.name}: failed with exit code {part.process.code} after {taken}; its last words:", flush=True)
        print("\n".join(f"    {line[:114]}" for line in lines), flush=True)
