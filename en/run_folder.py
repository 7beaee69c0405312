"""A run's folder: what was run, on what, and what came of it."""

import errno
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from en.config import Config
from en.configuring import dump
from en.distribution import Ranks
from en.errors import RunError, UserError

Row = dict[str, Any]
Ratios = dict[str, dict[str, float]]
TAGS = {
    "train_loss": "train/loss", "lr": "train/lr", "images_per_second": "train/images_per_second",
    "data_wait": "train/data_wait", "seconds": "train/seconds", "resolution": "train/resolution",
    "top1": "val/top1", "top5": "val/top5", "loss": "val/loss", "images": "val/images",
}  # fmt: skip
PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numpy", "pillow", "pydantic", "torchmetrics", "tensorboard")


class RunFolder:
    """The files of one run: config.yaml, provenance.json, log.jsonl, events.jsonl, summary.json, checkpoints, TensorBoard events.

    Made and written by rank 0 only, and by one process at a time.

    Raises: UserError for a folder that cannot be written, or in which another process is at work.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a")
        except OSError as error:
            raise UserError(f"run_dir={path}: {error.strerror}: expected a folder that can be written") from error
        try:  # a POSIX lock: it ends with this process, however that ends, and loader workers do not inherit it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"run_dir={path}: another run is writing into it: expected a folder of its own") from error
            print(f"warning: {path}: no locks here ({error.strerror}): two runs are not kept apart", file=sys.stderr, flush=True)

    def start(self, config: Config, ranks: Ranks, device: torch.device, epochs_done: int) -> None:
        """Writes what is about to run, after `epochs_done` epochs of it.

        What the logs hold of later epochs is dropped: a resumed run does them again.
        """
        with disk_errors_told(self.path):
            self._write("config.yaml", dump(config))
            for name in ("log.jsonl", "events.jsonl"):
                rows = whole_rows(self.path / name)
                self._write(name, "".join(f"{json.dumps(row)}\n" for row in rows if row["epoch"] <= epochs_done))
            starts = self.path / "provenance.json"
            earlier = json.loads(starts.read_text())["starts"] if starts.is_file() else []
            self._write("provenance.json", to_json({"starts": [*earlier, provenance(config, ranks, device)]}))
            self._writer = SummaryWriter(str(self.path), purge_step=epochs_done + 1)

    def write_epoch(self, row: Row, ratios: Ratios, notes: list[Row]) -> None:
        """Appends one epoch to log.jsonl and TensorBoard, and its notes to events.jsonl.

        Args:
            row: "epoch", counted from 1, and the epoch's numbers.
            ratios: the mean ratio of each normalizer in each EN layer.
            notes: what happened in it: "epoch", "step" and one thing more.
        """
        with disk_errors_told(self.path):
            for name, rows in (("events.jsonl", notes), ("log.jsonl", [row])):
                with (self.path / name).open("a") as file:
                    file.write("".join(f"{json.dumps(line)}\n" for line in rows))
                    file.flush()
                    os.fsync(file.fileno())  # before the checkpoint, which counts on these rows
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(TAGS.get(name, name), value, row["epoch"])
            for layer, shares in ratios.items():
                for name, share in shares.items():
                    self._writer.add_scalar(f"ratios/{layer}/{name}", share, row["epoch"])
            self._writer.flush()

    def write_summary(self, summary: Row) -> None:
        """Replaces summary.json, whole or not at all."""
        with disk_errors_told(self.path):
            self._write("summary.json", to_json(summary))

    def _write(self, name: str, content: str) -> None:
        temporary = self.path / f"{name}.partial"
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(self.path / name)


@contextmanager
def disk_errors_told(path: Path) -> Iterator[None]:
    """Makes a RunError of what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or path}: {error.strerror or error}; checkpoints written before are whole") from error


def to_json(content: Row) -> str:
    return json.dumps(content, indent=1) + "\n"


def whole_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file, up to one that a dying process left unfinished."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def new_run_path(config: Config, config_path: str) -> Path:
    """run_dir, or a new name under runs/."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(config_path).stem}-{config.norm.name}-s{config.seed}-{stamp}"


def refuse_used(path: Path) -> None:
    """Raises UserError for a folder that a new run would write over."""
    if (path / "config.yaml").exists() or (path.exists() and not path.is_dir()):
        held = "a run" if path.is_dir() else "a file"
        raise UserError(f"run_dir={path}: holds {held} already: expected a new folder, or --resume {path} to go on")


def provenance(config: Config, ranks: Ranks, device: torch.device) -> Row:
    """Command, commit, versions, hardware, seed and world size of this start."""
    commit, dirty = git_state()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "hardware": hardware(ranks, device),
        "seed": config.seed,
        "world_size": ranks.world_size,
    }


def hardware(ranks: Ranks, device: torch.device) -> str:
    """Processors or GPUs in words, e.g. '8 x NVIDIA H200'."""
    if device.type == "cuda":
        return f"{ranks.world_size} x {torch.cuda.get_device_name(device)}"
    return f"{len(os.sched_getaffinity(0))} cores of {processor()}"


def processor() -> str:
    """The CPU's name."""
    names = [line.partition(":")[2].strip() for line in open_cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def open_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state() -> tuple[str | None, bool | None]:
    """Commit of this source tree and whether it has uncommitted changes; None where it is no checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return commit, None if changes is None else bool(changes)
