"""Where a run begins: its folder, the checkpoint it goes on from, and what that holds."""

import os
import sys
from pathlib import Path
from typing import Any

from en.config.reading import flatten
from en.config.schema import Config
from en.data import ImageLoader
from en.distributed.ranks import Ranks
from en.errors import UserError, in_one_line
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint, Data
from en.runs.folder import new_run_path

FIXED = ("model", "norm", "optim", "schedule", "seed")  # what a resumed run has to share with its beginning
ORDER = ("train.batch_size", "data.loader")  # what the samples that are left of an epoch depend on
PLACES = ("run_dir", "resume")  # keys that say where a run lies, not what it does


def find_start(config: Config, config_path: str) -> tuple[Path, str, Checkpoint | None]:
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


def check_resumable(saved: Checkpoint, config: Config, data: Data, classes: list[str], origin: str) -> None:
    """Raises UserError when a run would go on with another task than it began with, or with another epoch than the one in hand."""
    if saved.classes != classes:
        raise UserError(f"data.root={config.data.root}: expected the classes that {origin} was trained on")
    now, then = config.model_dump(), saved.config
    for section in FIXED:
        if now[section] != then.get(section):
            raise UserError(f"{section}={now[section]}: expected what {origin} began with, {then.get(section)}")
    refuse_other_data(saved.data, data, config.data.root, origin)
    changed = changes(saved, config)
    for key in ORDER if saved.step else ():
        if key in changed:
            before, value = changed[key]
            raise UserError(f"{key}={value}: expected the {before} of {origin}, which is in the middle of an epoch")
    steps, epochs = data["train"]["samples"] // config.train.batch_size, config.train.epochs
    if saved.step and not (saved.step <= steps and saved.ranks and saved.epoch < epochs):
        raise UserError(f"{origin}: step {saved.step} of epoch {saved.epoch + 1}: expected at most {steps} steps, {epochs} epochs")
    if saved.epoch > epochs:
        raise UserError(f"train.epochs={epochs}: expected at least {saved.epoch}, which {origin} has behind it")


def refuse_other_data(then: Data, now: Data, root: str, origin: str) -> None:
    """Raises UserError unless the images are those that a run was trained on, as far as two loaders can know it of each other."""
    for split in ("train", "val"):
        before, after = then[split], now[split]
        same_loader = then["loader"] == now["loader"]
        if before["samples"] != after["samples"] or (same_loader and before["digest"] != after["digest"]):
            raise UserError(
                f"data.root={root}: expected the {split} images that {origin} was trained on, {before['samples']} with the digest "
                f"{before['digest'][:12]}, found {after['samples']} with {after['digest'][:12]}"
            )


def changes(saved: Checkpoint, config: Config) -> dict[str, tuple[Any, Any]]:
    """The configuration's keys, dotted, that are not what they were when the checkpoint was written, with both values."""
    then, now = flatten(saved.config), flatten(config.model_dump())
    keys = [key for key in {**now, **then} if key not in PLACES]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def describe_data(loader: str, train: ImageLoader, val: ImageLoader) -> Data:
    """What a checkpoint keeps of the images of both splits.

    Args:
        loader: data.loader, whose digests they are.
    """
    return {
        "name": train.name,
        "loader": loader,
        "train": {"samples": train.samples, "digest": train.digest},
        "val": {"samples": val.samples, "digest": val.digest},
    }


def resumption(saved: Checkpoint, config: Config, now: dict[str, Any]) -> dict[str, Any]:
    """What provenance.json keeps of a start that goes on from a checkpoint, and what is said of it, a line each.

    Args:
        now: the circumstances of this process.
    Returns: under "resumed_at" epochs and steps done, under "changed" and "not_bit_for_bit" what differs, before and now.
    """
    other = {key: (saved.circumstances.get(key), value) for key, value in now.items() if saved.circumstances.get(key) != value}
    return {
        "resumed_at": {"epoch": saved.epoch, "step": saved.step},
        "changed": changes(saved, config),
        "not_bit_for_bit": other,
    }


def told(resumed: dict[str, Any]) -> list[str]:
    """The lines that say what a resumed run does otherwise than before."""
    lines = [f"resumes with {key}={now} (was {before})" for key, (before, now) in resumed["changed"].items()]
    other = [f"{key}={shorten(now)} (was {shorten(before)})" for key, (before, now) in resumed["not_bit_for_bit"].items()]
    return [in_one_line(line) for line in lines] + (
        [in_one_line(f"resumes, but not bit for bit: {', '.join(other)}")] if other else []
    )


def shorten(value: Any) -> str:
    """A digest in 12 digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
