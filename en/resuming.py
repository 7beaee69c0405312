"""Where a run begins: its folder, the checkpoint it goes on from, and what that holds."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from en import checkpoint
from en.assembly import Learner
from en.config import Config
from en.distribution import Ranks
from en.errors import UserError
from en.loss_watch import LossWatch
from en.run_folder import new_run_path

FIXED = ("model", "norm", "optim", "schedule", "seed")  # what a resumed run has to share with its beginning


def find_start(config: Config, config_path: str) -> tuple[Path, str, checkpoint.Checkpoint | None]:
    """The run's folder, and the checkpoint to begin with, its path and content; "" and None for a run that begins anew.

    Raises: UserError for an explicit `resume` that is missing or damaged, and for a folder in which nothing is whole.
    """
    resume = config.resume
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"  # by torchrun, which is not to begin there once more
    if resume is None:
        return new_run_path(config, config_path), "", None
    folder = new_run_path(config, config_path) if resume == "auto" else Path(resume)
    refuse_elsewhere(config, folder)
    if resume != "auto" and not folder.is_dir():
        home = run_of(folder)
        if not restarted:
            return home, str(folder), checkpoint.load(folder)
        folder = home
    found = checkpoint.newest(folder)
    if found is not None:
        return folder, str(found[0]), found[1]
    if resume != "auto":
        raise UserError(f"--resume {resume}: expected a run folder with a checkpoint, found none")
    if Ranks.from_environment().is_first:
        print(f"resume=auto: {folder} has no checkpoint yet: beginning anew", file=sys.stderr, flush=True)
    return folder, "", None


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent if path.parent.name == checkpoint.STEPS else path.parent


def refuse_elsewhere(config: Config, start: Path) -> None:
    """Raises UserError when run_dir names another folder than that of the run that is gone on with."""
    home = run_of(start) if start.suffix == ".pt" else start
    if config.run_dir is not None and start.exists() and Path(config.run_dir).resolve() != home.resolve():
        raise UserError(f"run_dir={config.run_dir}: expected {home}, the folder of --resume {config.resume}, or none")


def snapshot(learner: Learner, config: Config, classes: list[str], best: dict[str, float]) -> checkpoint.Checkpoint:
    """What the future depends on and all ranks share, in plain values and tensors."""
    return {
        "model": learner.model.state_dict(),
        "ema": learner.ema.module.state_dict() if learner.ema else None,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "best": best,
        "config": config.model_dump(),
        "classes": classes,
    }


def rank_state(learner: Learner, watch: LossWatch) -> dict[str, Any]:
    """What the future of an unfinished epoch depends on and each rank has of its own: its losses and running averages.

    Random numbers are not among it: each step's come from a generator seeded by (seed, epoch, step, rank).
    """
    buffers = [{name: value.cpu() for name, value in floating_buffers(network)} for network in learner.networks()]
    return {"watch": watch.state(), "buffers": buffers}


def floating_buffers(network: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in network.named_buffers() if value.is_floating_point()]


@torch.no_grad()
def restore(learner: Learner, saved: checkpoint.Checkpoint, ranks: Ranks, origin: str) -> None:
    """Puts a checkpoint's state into a learner. Raises UserError when it does not fit.

    With another number of ranks than it was written with, each takes the mean of their running averages.
    """
    path = Path(origin)
    checkpoint.load_weights(learner.model, saved["model"], path)
    if learner.ema:
        checkpoint.load_weights(learner.ema.module, saved["ema"] or saved["model"], path)
    states = saved["ranks"]
    chosen = [states[ranks.rank]] if len(states) == ranks.world_size else states
    for index, network in enumerate(learner.networks() if states else []):
        for name, value in floating_buffers(network):
            value.copy_(torch.stack([state["buffers"][min(index, len(state["buffers"]) - 1)][name] for state in chosen]).mean(0))
    try:
        learner.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:
            learner.scaler.load_state_dict(saved["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the optimizer's state of this configuration: {error}") from error


def check_resumable(saved: checkpoint.Checkpoint, config: Config, classes: list[str], origin: str) -> None:
    """Raises UserError when a run would go on with another task than it began with."""
    if saved["classes"] != classes:
        raise UserError(f"data.root={config.data.root}: expected the classes that {origin} was trained on")
    now, then = config.model_dump(), saved["config"]
    for section in FIXED:
        if now[section] != then.get(section):
            raise UserError(f"{section}={now[section]}: expected what {origin} began with, {then.get(section)}")
    batch_size, before = config.train.batch_size, then["train"]["batch_size"]
    if saved["step"] and batch_size != before:
        raise UserError(f"train.batch_size={batch_size}: expected the {before} of {origin}, which is in the middle of an epoch")
