"""Interleaved measurements, their medians and their tables."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from en.progress import Progress
from en.runs.provenance import processor

Row = dict[str, Any]


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, label: str, warmups: int = 2, repeat: int = 1
) -> dict[str, list[float]]:
    """Seconds of each case by round; a round runs every case `repeat` times, so that a slow minute affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with Progress(label, rounds + warmups) as progress:
        for turn in range(rounds + warmups):
            gc.collect()
            for name, case in cases.items():
                started = time.perf_counter()
                for _ in range(repeat):
                    case()
                finish_device()
                if turn >= warmups:
                    seconds[name].append((time.perf_counter() - started) / repeat)
            progress.advance()
    return seconds


def finish_device() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def hardware(device: str, threads: int) -> str:
    """A description of the hardware that was measured."""
    if device == "cuda":
        return f"1 x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{threads} threads of {processor()}, torch {torch.__version__}"


def show(title: str, rows: Sequence[Row]) -> None:
    """Prints a table; floats with three significant digits."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)


def write(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes the report as JSON, if `path` is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
