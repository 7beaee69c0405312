"""A run's folder: what was run, on what, and what came of it."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from en.config import Config
from en.configuring import dump
from en.distribution import Ranks
from en.errors import UserError

Row = dict[str, Any]
Ratios = dict[str, dict[str, float]]
TAGS = {
    "train_loss": "train/loss", "lr": "train/lr", "images_per_second": "train/images_per_second",
    "data_wait": "train/data_wait", "seconds": "train/seconds", "resolution": "train/resolution",
    "top1": "val/top1", "top5": "val/top5", "loss": "val/loss", "images": "val/images",
}  # fmt: skip
PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numpy", "pillow", "pydantic", "torchmetrics", "tensorboard")


class RunFolder:
    """The files of one run: config.yaml, provenance.json, log.jsonl, summary.json, last.pt, best.pt, TensorBoard events.

    Made and written by rank 0 only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, config: Config, ranks: Ranks, device: torch.device, epochs_done: int) -> None:
        """Makes the folder, or takes up an existing one after `epochs_done` epochs, and writes what is about to run.

        What the logs hold of later epochs is dropped: a resumed run does them again.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(dump(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"run_dir={self.path}: {error.strerror}: expected a folder that can be written") from error
        log, starts = self.path / "log.jsonl", self.path / "provenance.json"
        rows = log.read_text().splitlines() if log.is_file() else []
        log.write_text("".join(f"{row}\n" for row in rows if json.loads(row)["epoch"] <= epochs_done))
        earlier = json.loads(starts.read_text())["starts"] if starts.is_file() else []
        self._write("provenance.json", {"starts": [*earlier, provenance(config, ranks, device)]})
        self._writer = SummaryWriter(str(self.path), purge_step=epochs_done + 1)

    def write_epoch(self, row: Row, ratios: Ratios) -> None:
        """Appends one epoch to log.jsonl and TensorBoard.

        Args:
            row: "epoch", counted from 1, and the epoch's numbers.
            ratios: the mean ratio of each normalizer in each EN layer.
        """
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(TAGS.get(name, name), value, row["epoch"])
        for layer, shares in ratios.items():
            for name, share in shares.items():
                self._writer.add_scalar(f"ratios/{layer}/{name}", share, row["epoch"])
        self._writer.flush()

    def write_summary(self, summary: Row) -> None:
        """Replaces summary.json, whole or not at all."""
        self._write("summary.json", summary)

    def _write(self, name: str, content: Row) -> None:
        temporary = self.path / f"{name}.partial"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.path / name)


def new_run_path(config: Config, config_path: str) -> Path:
    """run_dir, or a new name under runs/. Raises UserError when run_dir already holds a run."""
    if config.run_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"{Path(config_path).stem}-{config.norm.name}-s{config.seed}-{stamp}"
    path = Path(config.run_dir)
    if (path / "config.yaml").exists() or (path.exists() and not path.is_dir()):
        held = "a run" if path.is_dir() else "a file"
        raise UserError(f"run_dir={path}: holds {held} already: expected a new folder, or --resume {path} to go on")
    return path


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
