"""deterministic: true through train.py: two runs, and one that is killed and resumed, with the same bits."""

import tempfile
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from torch import Tensor

from gpu.results import Report, Setup
from gpu.small_run import Place, log_rows, prepared

TIMES = ("images_per_second", "data_wait", "seconds")
PARTS = ("model", "optimizer", "position", "best")  # of a checkpoint


def test_exactness(setup: Setup, report: Report) -> None:
    """Starts all runs at once, kills one after its first checkpoints, and resumes it."""
    with tempfile.TemporaryDirectory() as temporary:
        place = prepared(setup, Path(temporary))
        runs = {name: place.train(name, "deterministic=true") for name in ("first", "second", "killed")}
        killed = kill_midway(runs["killed"], place.run_folder("killed"), 1 if setup.tiny else 5)
        report.note("one run was killed in its middle" if killed else "the run that was to be killed ended before")
        runs["killed"] = place.train("killed", "deterministic=true", "resume=auto")
        for name, process in runs.items():
            code = process.wait()
            report.row("runs", run=name, **{"exit code": code, "last line": place.last_words(name)[-80:]})
        for name, figure in (("second", "two runs"), ("killed", "killed")):
            found = differences(place, "first", name)
            report.row("deterministic: true", compared=f"first, {name}", differences=len(found), one=(found + [""])[0])
            if figure == "two runs" or killed:
                report.figure(figure, not found)


def kill_midway(process: Popen[bytes], run: Path, checkpoints: int) -> bool:
    """Kills a run once it has written so many checkpoints. Returns: whether it still ran."""
    seen: set[str] = set()
    while len(seen) < checkpoints and process.poll() is None:
        seen |= {path.name for path in (run / "checkpoints").glob("step_*.pt")}
        time.sleep(0.01)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def differences(place: Place, one: str, other: str) -> list[str]:
    """What is not the same to the bit in two runs: the last checkpoint and the log, times aside."""
    paths = [place.run_folder(name) / "last.pt" for name in (one, other)]
    missing = [f"{path.parent.name}: no last.pt" for path in paths if not path.is_file()]
    if missing:
        return missing
    first, second = (torch.load(path, weights_only=True, map_location="cpu") for path in paths)
    found = [key for part in PARTS for key in unequal(part, first[part], second[part])]
    logs = [
        [{key: value for key, value in row.items() if key not in TIMES} for row in log_rows(place.run_folder(name))]
        for name in (one, other)
    ]
    return found + ([] if logs[0] == logs[1] else ["log.jsonl"])


def unequal(name: str, one: Any, other: Any) -> list[str]:
    """The places in two nested values that are not the same to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in unequal(f"{name}.{key}", one[key], other[key])]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for i, (a, b) in pairs for place in unequal(f"{name}.{i}", a, b)]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]
