"""Interleaved measurements, their medians and their tables."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from en.machine import processor
from en.progress import Progress

Measured = dict[str, Any]


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    label: str,
    warmups: int = 2,
    repeat: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each case by round; a round runs every case `repeat` times, so that a slow minute affects all.

    Args:
        clock: of a CPU. time.process_time counts what the processor works for this process, whatever else it runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with Progress(label, rounds + warmups) as progress:
        for turn in range(rounds + warmups):
            gc.collect()
            for name, case in cases.items():
                taken = timed(case, repeat, device, clock)
                if turn >= warmups:
                    seconds[name].append(taken)
            progress.advance()
    return seconds


def timed(case: Callable[[], object], repeat: int, device: str, clock: Callable[[], float]) -> float:
    """Mean seconds of a case, run `repeat` times: by events on a GPU, by the clock on a CPU."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeat):
            case()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / repeat
    started = clock()
    for _ in range(repeat):
        case()
    return (clock() - started) / repeat


def finish(device: str) -> None:
    """Waits for the GPU, where that is the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def hardware(device: str, threads: int) -> str:
    """A description of the hardware that was measured."""
    if device == "cuda":
        return f"1 x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{threads} threads of {processor()}, torch {torch.__version__}"


def show(title: str, rows: Sequence[Measured]) -> None:
    """Prints a table; floats with three significant digits."""
    print(f"\n{title}\n{table(rows)}", flush=True)


def table(rows: Sequence[Measured]) -> str:
    """Rows as text, under the first one's keys; figures to the right."""
    lines = [list(rows[0]), *([as_text(row.get(key)) for key in rows[0]] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows[0]))]
    left = [isinstance(value, str) for value in rows[0].values()]
    aligned = [
        [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("  " + "  ".join(line).rstrip() for line in aligned)


def as_text(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def write(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes the report as JSON, if `path` is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
