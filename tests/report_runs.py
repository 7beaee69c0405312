"""Run folders as training leaves them, made without training, and their report."""

import csv
import json
from pathlib import Path
from typing import Any

from en.config.reading import dump
from en.config.schema import Config
from en.reports.files import write_report
from en.reports.ratios.files import FACTS

SUMMARY = {
    "model": "resnet50", "norm": "en", "norm_options": {}, "task": "classification", "dataset": "ImageNet",
    "classes": 1000, "images": 50_000, "seed": 0, "epochs": 100, "epochs_done": 100,
    "score": "top1", "best_score": 77.1, "best_epoch": 99,
    "scores": {"top1": 77.0, "top5": 93.0, "loss": 0.9},
    "params": 25_900_000, "gmacs": 4.09, "norm_gmacs": 0.05, "images_per_second": 9000.0, "resolution": 224,
    "eval_resolution": 224, "batch_size": 256, "world_size": 8, "hardware": "8 x some GPU",
}  # fmt: skip
CONFIG = {
    "model": {"name": "resnet50"}, "norm": {"name": "en"}, "data": {"root": "x"},
    "train": {"epochs": 100, "batch_size": 256}, "optim": {"lr": 0.1},
}  # fmt: skip
LINE = "python train.py recipe.yaml"


def scores(top1: object = 77.0, top5: object = 93.0) -> dict[str, object]:
    return {"top1": top1, "top5": top5, "loss": 0.9}


def run(folder: Path, config: dict[str, object] | None = None, **changes: object) -> str:
    """A run of summary and configuration alone, finished unless `changes` of its summary say else."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    (folder / "config.yaml").write_text(dump(Config.model_validate({**CONFIG, **(config or {})})))
    return str(folder)


def logged(folder: Path, norm: str, seed: int, rows: list[dict[str, Any]], epochs: int, side: int = 64) -> str:
    """A run on a small set with a log, whose last row its summary repeats; without a row, it has no summary."""
    last = rows[-1] if rows else {"top1": 0.0, "top5": 0.0, "loss": 0.0, "images_per_second": None}
    config = {
        "norm": {"name": norm},
        "seed": seed,
        "data": {"root": "x", "resolution": side},
        "train": {"epochs": epochs, "batch_size": 256},
    }
    summary: dict[str, Any] = {
        "norm": norm, "seed": seed, "epochs": epochs, "epochs_done": len(rows), "resolution": side,
        "eval_resolution": side, "dataset": "clothes", "classes": 10, "images": 1000,
        "scores": {name: last[name] for name in ("top1", "top5", "loss")},
        "images_per_second": last["images_per_second"],
        "params": 1_000_000 if norm == "bn" else 1_200_000, "norm_gmacs": 0.01 if norm == "bn" else 0.05,
    }  # fmt: skip
    path = run(folder, config, **summary)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    start = {"time": "2026-11-24T12:00:00+0000", "command": f"{LINE} seed={seed}", "git_commit": "ab" * 20}
    start |= {"git_dirty": seed == 1, "hardware": "some CPU"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    if not rows:
        (folder / "summary.json").unlink()
    return path


def looked_at(run: Path, **facts: str) -> Path:
    """The run's folder of ratios with what says what they are of, and nothing else."""
    of = {"checkpoint": f"{run}/last.pt", "trained to": "epoch 100", "sha256": "ab" * 32}
    of |= {"images": "50,000", "split": "val", "data": "ImageNet"}
    (run / "ratios").mkdir(exist_ok=True)
    (run / "ratios" / FACTS).write_text(json.dumps({**of, **facts}))
    return run / "ratios"


def report(runs: list[str], out: Path) -> str:
    """The report in Markdown."""
    write_report(runs, out)
    return (out / "report.md").read_text()


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
