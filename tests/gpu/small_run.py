"""Short runs of train.py on a few generated class folders: shared by the parts that look at whole runs."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

from en.benchmarks.photographs import KINDS, make_images
from en.machine import ROOT
from gpu.results import Setup

RECIPE = """
model: {{name: {model}}}
norm: {{name: en}}
data: {{root: {root}, loader: folder, resolution: 64, workers: 0}}
task: {{mixup: 0.2}}
train: {{epochs: {epochs}, batch_size: {batch}}}
optim: {{lr: 0.02}}
schedule: {{warmup_epochs: 0.5}}
checkpoint: {{every_steps: 1, keep: 2}}
device: {device}
"""


@dataclass(frozen=True)
class Place:
    """Where recipe, images and run folders lie."""

    setup: Setup
    folder: Path

    def run_folder(self, name: str) -> Path:
        return self.folder / name

    def train(self, name: str, *options: str) -> Popen[bytes]:
        """Starts a run, or the same one again."""
        script, recipe = str(ROOT / "train.py"), str(self.folder / "recipe.yaml")
        line = [sys.executable, script, recipe, f"run_dir={self.run_folder(name)}", *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            return Popen(line, stdout=log, stderr=STDOUT)

    def last_words(self, name: str) -> str:
        """The last line that a run printed."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def prepared(setup: Setup, folder: Path) -> Place:
    """Writes images and recipe."""
    images = 8 if setup.tiny else 256
    make_images(folder / "images", KINDS[0], None, images, 1 if setup.tiny else 4)
    size: dict[str, Any] = {"model": "resnet18", "epochs": 3, "batch": 32}
    if setup.tiny:
        size = {"model": "shufflenet_v2_x0_5", "epochs": 2, "batch": 4}
    text = RECIPE.format(**size, root=folder / "images", device=setup.device)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return Place(setup, folder)


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of log.jsonl; none where it is missing."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
