"""Checkpoints: written whole or not at all, checked by their SHA-256, read without running code from them."""

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from en.errors import RunError, UserError

STEPS = "checkpoints"
Checkpoint = dict[str, Any]
KINDS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "ema": (dict, type(None)),
    "optimizer": dict,
    "scaler": dict,
    "epoch": int,
    "step": int,
    "ranks": list,
    "summary": (dict, type(None)),
    "best": dict,
    "config": dict,
    "classes": list,
}


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint and its SHA-256, durably, whole or not at all: temporary file, fsync, rename, fsync of the folder.

    `path`.sha256 is what `sha256sum -c` reads.

    Raises: RunError when it cannot be written, on a full disk for one; what was there before stays.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(partial, content)
        write_durably(sum_path(partial), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
        put_in_place(partial, path)
    except OSError as error:
        drop(partial)
        raise RunError(f"{path}: {error.strerror or error}: this checkpoint was not written; those before it are whole") from error


def put_in_place(partial: Path, path: Path) -> None:
    """Renames a checkpoint and its sum. At every moment there is a whole checkpoint, beside it its own sum or none."""
    sum_path(path).unlink(missing_ok=True)
    partial.replace(path)
    sum_path(partial).replace(sum_path(path))
    sync_folder(path.parent)


def drop(partial: Path) -> None:
    """Removes what a failed write left."""
    for leftover in (partial, sum_path(partial)):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def link(path: Path, name: Path) -> None:
    """Makes `name` another name of a checkpoint, in place of what was there; a copy where the disk has no links."""
    if path == name:
        return
    partial = name.with_name(name.name + ".partial")
    try:
        drop(partial)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copy2(path, partial)
        digest = (
            sum_path(path).read_text().split()[0] if sum_path(path).is_file() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        write_durably(sum_path(partial), f"{digest}  {name.name}\n".encode())
        put_in_place(partial, name)
    except OSError as error:
        drop(partial)
        raise RunError(f"{name}: {error.strerror or error}: not written; the checkpoints before are whole") from error


def step_path(folder: Path, epoch: int, step: int) -> Path:
    """Where a run's checkpoint after `epoch` epochs and `step` steps of the next one lies."""
    return folder / STEPS / f"step_{epoch:05d}_{step:08d}.pt"


def step_paths(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((folder / STEPS).glob("step_*.pt"), reverse=True)


def remove(paths: Iterable[Path]) -> None:
    """Deletes checkpoints with their sums."""
    for path in paths:
        path.unlink(missing_ok=True)
        sum_path(path).unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """A run's newest checkpoint that is whole, warning of newer ones that are not; None in a folder without any.

    Raises: UserError when none of those there is whole: never a silent start from scratch.
    """
    candidates = [*step_paths(folder), *(path for path in [folder / "last.pt"] if path.exists())]
    problems = []
    for path in candidates:
        try:
            return path, load(path)
        except UserError as error:
            problems.append(str(error))
            print(f"warning: {error}; trying the one before it", file=sys.stderr, flush=True)
    if problems:
        raise UserError(f"{folder}: none of its {len(problems)} checkpoints is whole: {problems[0]}")
    return None


def load(path: Path) -> Checkpoint:
    """A checkpoint on the CPU, read without running code from it.

    Raises: UserError for a file that is missing, not what its SHA-256 beside it says, or not a checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: expected a checkpoint")
    try:
        content = path.read_bytes()
        if sum_path(path).is_file() and hashlib.sha256(content).hexdigest() != sum_path(path).read_text().split()[0]:
            raise UserError(f"{path}: truncated or changed: expected the content that {sum_path(path).name} was taken of")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write, which it then refuses
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path}: expected a checkpoint, which does not load: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
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
