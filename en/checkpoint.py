"""Checkpoints: written whole or not at all, read without running code from them."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from en.errors import UserError

Checkpoint = dict[str, Any]
KINDS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "ema": (dict, type(None)),
    "optimizer": dict,
    "scaler": dict,
    "epoch": int,
    "best": dict,
    "config": dict,
    "classes": list,
}


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint durably: to a temporary file, synced, then renamed over `path`, and the folder synced."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> Checkpoint:
    """A checkpoint on the CPU. Raises UserError for a file that is missing, broken, or not a checkpoint of this package."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: expected a checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write, which it then refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: expected a checkpoint, which does not load: {str(error).splitlines()[0]}") from error
    found = checkpoint if isinstance(checkpoint, dict) else {}
    wrong = [key for key, kind in KINDS.items() if key not in found or not isinstance(found[key], kind)]
    if wrong:
        raise UserError(f"{path}: expected a checkpoint with {', '.join(KINDS)}; missing or of another type: {', '.join(wrong)}")
    return dict(checkpoint)


def locate(where: str) -> Path:
    """The checkpoint meant by a run folder (its last.pt) or by a checkpoint's own path."""
    path = Path(where)
    return path / "last.pt" if path.is_dir() else path


def load_weights(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Puts a checkpoint's weights into a model. Raises UserError when they are those of another network."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: expected the weights of this configuration's network: {detail}") from error
