"""Runs that are killed and resumed, again and again, compared with one that was never touched."""

import contextlib
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from commands import ROOT, Together, command, environment_of, fork
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from warm import can_fork

TIMES = ("images_per_second", "data_wait", "seconds")
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}, dropout: 0.2}
norm: {name: en}
data: {root: unset, resolution: 48, workers: 1}
task: {mixup: 0.2, cutmix: 1.0, rand_augment: 2, rand_deviation: 1.0, erasing: 0.5}
train: {epochs: 4, batch_size: 24, ema_decay: 0.9}
optim: {lr: 0.02}
schedule: {warmup_epochs: 0.5}
checkpoint: {every_steps: 1, keep: 2}
device: cpu
"""


@dataclass(frozen=True)
class Case:
    """One way to run RECIPE; ranks=0 is one process without torchrun."""

    loader: str
    ranks: int
    options: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "-".join([self.loader, f"{self.ranks}-ranks", *self.options])


CASES = [
    Case("ffcv", 0),
    Case("folder", 0, ["train.accumulation=2", "train.precision=bfloat16"]),
    Case("ffcv", 3, ["train.accumulation=2"]),
    Case("folder", 2, ["train.ema_decay=null"]),
]


@dataclass(frozen=True)
class Place:
    """Where the recipe and the data of the loaders lie."""

    recipe: Path
    data: dict[str, Path]


def line(place: Place, case: Case, run: Path, *more: str, launcher: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """The command of a run, by torchrun with the options `launcher` where the case has ranks."""
    torchrun = ("-m", "torch.distributed.run", *launcher, f"--nproc-per-node={case.ranks}") if case.ranks else ()
    root = place.data[case.loader]
    options = [f"data.loader={case.loader}", f"data.root={root}", *case.options, f"run_dir={run}", *more]
    return [sys.executable, *torchrun, str(ROOT / "train.py"), str(place.recipe), *options]


Started = subprocess.Popen[str] | Together


def start(command: list[str], cold: bool = False, **environment: str) -> Started:
    """Starts it in a session of its own, so that all its processes can be killed together.

    A run without torchrun skips the imports, unless `cold`; see also `start_ranks`.
    """
    env = environment_of(**environment)
    if command[1] != "-m" and not cold and can_fork(environment):
        return fork(command[1:], env)
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def start_ranks(place: Place, case: Case, run: Path, *more: str) -> Together:
    """Starts the ranks of a run without torchrun, which takes longer than all that they do; they skip the imports."""
    return fork(line(place, Case(case.loader, 0, case.options), run, *more)[1:], environment_of(), case.ranks)


def finish(process: Started, limit_s: float = 300) -> tuple[int, str]:
    """Its exit code and what it wrote on stderr."""
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, errors


def kill(process: Started) -> str:
    """Kills all its processes, also those in sessions of torchrun's making. Returns: what was written on stderr."""
    if isinstance(process, Together):
        process.kill()
        return process.communicate()[1]
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        launcher.suspend()  # so that it starts nothing while its family is counted
        for member in [*launcher.children(recursive=True), launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    return process.communicate()[1]


def steps(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("step_*.pt")}


def wait_for_new_step(process: Started, run: Path, before: set[str], limit_s: float = 180) -> bool:
    """Waits for a checkpoint that was not there before; False when the process ended first."""
    deadline = time.monotonic() + limit_s
    while not steps(run) - before:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "no checkpoint within the time limit"
        time.sleep(0.005)
    return True


def run_untouched(place: Place, case: Case, run: Path) -> None:
    code, errors = finish(start_ranks(place, case, run))
    assert code == 0, errors


def run_killed(place: Place, case: Case, run: Path, draw: random.Random, kills: int) -> int:
    """Kills a run `kills` times, each at a random moment after its first new step, then lets it end.

    Returns: how often it was killed.
    """
    done = 0
    while done < kills:
        before = steps(run)
        process = start_ranks(place, case, run, "resume=auto")
        if not wait_for_new_step(process, run, before):
            code, errors = finish(process)
            assert code == 0, errors
            return done
        time.sleep(draw.uniform(0, 0.25))
        if process.poll() is None:
            kill(process)
            done += 1
    code, errors = finish(start_ranks(place, case, run, "resume=auto"))
    assert code == 0, errors
    return done


def differences(whole: Path, broken: Path) -> list[str]:
    """Lists what differs in two runs: weights, counts and pictures bit for bit, rows and events, times aside."""
    found = []
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(run / name, weights_only=True) for run in (whole, broken))
        for part in ("model", "ema"):
            for key, value in (ours[part] or {}).items():
                if not torch.equal(value, theirs[part][key]):
                    found.append(f"{name}: {part}: {key}")
        if ours["best"] != theirs["best"] or ours["position"] != theirs["position"]:
            found.append(f"{name}: best or position")
    for name in ("log.jsonl", "ratios.jsonl"):
        if rows(whole, name) != rows(broken, name):
            found.append(f"{name}: {rows(whole, name)} and {rows(broken, name)}")
    ours_kept, theirs_kept = kept(whole), kept(broken)
    found += [name for name in ours_kept.keys() | theirs_kept.keys() if ours_kept.get(name) != theirs_kept.get(name)]
    ours_shown, theirs_shown = shown(whole), shown(broken)
    for tag in sorted(ours_shown.keys() | theirs_shown.keys()):
        if tag.removeprefix("train/") not in TIMES and ours_shown.get(tag) != theirs_shown.get(tag):
            found.append(f"TensorBoard: {tag}: {ours_shown.get(tag)} and {theirs_shown.get(tag)}")
    return found


def rows(run: Path, name: str = "log.jsonl") -> list[dict[str, float]]:
    """The rows of a log without the times."""
    lines = [json.loads(text) for text in (run / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in lines]


def kept(run: Path) -> dict[str, bytes]:
    """Reads what is kept of the last and the best evaluation, by the files' names."""
    folder = run / "evaluation"
    return {str(path.relative_to(run)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Reads all that TensorBoard shows, as it reads it itself: by tag, places on the axis and what is there."""
    found = {}
    for folder in (run, run / "by_step"):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            found[tag] = [(each.step, make_ndarray(each.tensor_proto).tolist()) for each in events.Tensors(tag)]
    return found


def ranks_of(process: Started) -> dict[int, psutil.Process]:
    """torchrun's processes by rank."""
    found = {}
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "RANK" in child.environ() and "train.py" in " ".join(child.cmdline()):
                found[int(child.environ()["RANK"])] = child
    return found


def train(place: Place, case: Case, run: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in one process, to its end."""
    return command("train.py", *line(place, case, run, *more)[2:], **environment)
