"""Trains every normalizer for ten steps in two source trees and reports the first bit that differs."""

import os
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LOADERS, RANKS, STEPS = ("ffcv", "folder"), (1, 2), 10
IMAGES = {
    "train": 66,
    "val": 3,
}  # of each of four classes: eleven batches of 24, since a finished epoch keeps no losses
RECIPE = "tests/compare_losses.yaml"


def train_all(tree: Path, out: Path) -> None:
    """Trains each normalizer with each loader in this process, by the tree's train.py and recipe; run by torchrun."""
    from en.norm import NORMALIZERS

    for loader, norm in product(LOADERS, NORMALIZERS):
        run = out / f"{loader}-{os.environ['WORLD_SIZE']}-{norm}"
        data = out.parent / ("betons" if loader == "ffcv" else "images")
        options = [f"data.loader={loader}", f"data.root={data}", f"norm.name={norm}", f"run_dir={run}"]
        sys.argv = ["train.py", str(tree / RECIPE), *options, f"checkpoint.keep={STEPS + 1}"]
        runpy.run_path(str(tree / "train.py"), run_name="__main__")


def run_tree(tree: Path, out: Path) -> None:
    """All runs of one source tree."""
    for ranks in RANKS:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        env = os.environ | {"PYTHONPATH": f"{tree}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, __file__, "--train", str(tree), str(out)], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{tree}: {ranks} ranks: {done.stdout}{done.stderr}")


def first_difference(then: Path, now: Path) -> str:
    """Where two runs first differ, in words; empty when they are equal to the bit."""
    names = sorted(path.name for path in (then / "checkpoints").glob("step_00000_*.pt"))
    if len(names) != STEPS or names != sorted(path.name for path in (now / "checkpoints").glob("step_00000_*.pt")):
        return f"{len(names)} checkpoints then: expected {STEPS}, of the same names now"
    for step, name in enumerate(names, 1):
        before, after = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (then, now))
        for rank, (a, b) in enumerate(zip(before["ranks"], after["ranks"], strict=True)):
            if loss_sum(a) != loss_sum(b):
                return f"rank {rank}, step {step}: the losses add up to {loss_sum(a)!r} then, {loss_sum(b)!r} now"
        for part in ("model", "ema"):
            for key, value in before[part].items():
                if not torch.equal(value, after[part][key]):
                    return f"step {step}: {part}: {key} differs by up to {(value - after[part][key]).abs().max():.3g}"
    return ""


def loss_sum(rank: dict[str, Any]) -> float:
    """The sum of a rank's losses, under whatever name a tree keeps them."""
    (total,) = (part["sum"] for part in rank.values() if isinstance(part, dict))
    return float(total)


def main(then: Path, work: Path) -> int:
    """Compares a tree with the working tree; the number of runs that differ."""
    from commands import (
        succeed,
    )  # here, because they import the package, which in a process that trains is the other tree's
    from conftest import write_folders

    write_folders(work / "images", IMAGES)
    succeed("scripts/prepare_data.py", work / "images", work / "betons")
    trees = {"then": then, "now": ROOT}
    for name, tree in trees.items():
        print(f"== {name}: {tree}", flush=True)
        run_tree(tree, work / f"runs-{name}")
    runs = sorted(path.name for path in (work / "runs-then").iterdir())
    found = {run: first_difference(work / "runs-then" / run, work / "runs-now" / run) for run in runs}
    for run, difference in found.items():
        loader, ranks, norm = run.split("-")
        print(f"{norm:4} {loader:6} {ranks} ranks: {difference or f'{STEPS} steps equal to the bit'}")
    return sum(map(bool, found.values()))


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        train_all(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(1 if main(Path(sys.argv[1]), Path(sys.argv[2])) else 0)
