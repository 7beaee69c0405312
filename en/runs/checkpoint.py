"""Checkpoint files: written whole or not at all, checked by their SHA-256, read without running code from them."""

import contextlib
import hashlib
import io
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from en import durable
from en.durable import PARTIAL
from en.errors import RunError, UserError, warn
from en.runs.contents import Checkpoint, checked
from en.runs.foreign import object_in
from en.runs.position import Position

STEPS = "checkpoints"


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint and its SHA-256, durably, whole or not at all, into a run folder that is there.

    `path`.sha256 is what `sha256sum -c` reads.

    Raises: RunError when it cannot be written, on a full disk for one; what was there before stays.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint.content(), buffer)
    content = buffer.getbuffer()
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(exist_ok=True)
        drop(partial)  # what a kill left may be a link to a whole checkpoint, which writing into it would destroy
        durable.write(partial, content)
        durable.write(sum_path(partial), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
        put_in_place(partial, path)
    except OSError as error:
        drop(partial)
        raise RunError(
            f"{path}: {error.strerror or error}: this checkpoint was not written; those before it are whole"
        ) from error


def put_in_place(partial: Path, path: Path) -> None:
    """Renames a checkpoint and its sum. At every moment there is a whole checkpoint, beside it its own sum or none."""
    sum_path(path).unlink(missing_ok=True)
    partial.replace(path)
    partial.unlink(missing_ok=True)  # a rename leaves it where both already were names of one file
    sum_path(partial).replace(sum_path(path))
    durable.sync_folder(path.parent)


def drop(partial: Path) -> None:
    """Removes what a failed write left."""
    for leftover in (partial, sum_path(partial)):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def drop_partials(folder: Path) -> None:
    """Removes what killed processes left half-written, or half-removed, among a run's checkpoints and their names."""
    for pattern in (f"*.pt{PARTIAL}*", f"{STEPS}/*.pt{PARTIAL}*"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)
    for pattern in ("*.pt.sha256", f"{STEPS}/*.pt.sha256"):
        for leftover in folder.glob(pattern):
            if not leftover.with_suffix("").exists():
                leftover.unlink(missing_ok=True)


def sum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def digest_of(path: Path) -> str:
    """Reads a checkpoint's SHA-256, in hex, from beside it, or takes it where that is missing. Raises OSError."""
    beside = sum_path(path).read_bytes().split() if sum_path(path).is_file() else []
    return beside[0].decode(errors="replace") if beside else hashlib.sha256(path.read_bytes()).hexdigest()


def link(path: Path, name: Path) -> None:
    """Makes `name` another name of a checkpoint, in place of what was there; a copy where the disk has no links."""
    if path == name:
        return
    partial = name.with_name(name.name + PARTIAL)
    try:
        drop(partial)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copy2(path, partial)
        durable.write(sum_path(partial), f"{digest_of(path)}  {name.name}\n".encode())
        put_in_place(partial, name)
    except OSError as error:
        drop(partial)
        raise RunError(f"{name}: {error.strerror or error}: not written; the checkpoints before are whole") from error


def step_path(folder: Path, position: Position) -> Path:
    """Returns the path of a run's checkpoint of a position."""
    return folder / STEPS / f"step_{position.epoch:05d}_{position.step:08d}.pt"


def step_paths(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((path for path in (folder / STEPS).glob("step_*.pt") if path.is_file()), reverse=True)


def remove(paths: Iterable[Path]) -> None:
    """Deletes checkpoints with their sums."""
    for path in paths:
        path.unlink(missing_ok=True)
        sum_path(path).unlink(missing_ok=True)


def newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """A run's newest checkpoint that is whole, warning of newer ones that are not; None in a folder without any.

    Raises: UserError when none of those there can be used: never a silent start from scratch.
    """
    candidates = [*step_paths(folder), *(path for path in [folder / "last.pt"] if path.exists())]
    problems = []
    for path in candidates:
        try:
            return path, load(path)
        except UserError as error:
            problems.append(str(error))
            warn(f"{error}; passed over")
    if problems:
        raise UserError(f"{folder}: none of its {len(problems)} checkpoints can be used: {problems[0]}")
    return None


def load(path: Path) -> Checkpoint:
    """A checkpoint on the CPU, read without running code from it.

    Raises: UserError for a file that is missing, changed by its SHA-256 beside it, or not a checkpoint of this package.
    """
    content = content_of(path)
    digest = hashlib.sha256(content).hexdigest()
    summed = refuse_changed(path, content, digest)
    checkpoint = checked(values_in(content, path), path, digest)
    if not summed:
        warn(f"{path}: {sum_path(path).name} is missing: checked by the sums inside alone")
    return checkpoint


def content_of(path: Path) -> bytes:
    """Reads a file. Raises UserError for one that is missing or cannot be read."""
    try:
        if path.is_file():
            return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}: expected a checkpoint") from error
    found = "a folder" if path.is_dir() else "no such file"
    raise UserError(f"{path}: {found}: expected a checkpoint")


def values_in(content: bytes, path: Path) -> Any:
    """Returns what torch saved, on the CPU, without running code from it. Raises UserError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write, which it then refuses
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for files that it did not write
        reason = object_in(error) or (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(f"{path}: expected a checkpoint, which does not load: {reason[:200]}") from error


def refuse_changed(path: Path, content: bytes, digest: str) -> bool:
    """Raises UserError for a checkpoint that is not the one that was written.

    Returns: whether its SHA-256 shows it; else the sums inside the file do, which do not cover all of it.
    """
    if sum_path(path).is_file():
        if sum_path(path).read_bytes().split()[:1] != [digest.encode()]:
            raise UserError(
                f"{path}: truncated or changed: expected the content that {sum_path(path).name} was taken of"
            )
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises errors of many kinds for damaged files
        raise UserError(
            f"{path}: expected a checkpoint, which does not load: {' '.join(str(error).split())[:200]}"
        ) from error
    if damaged is not None:
        raise UserError(
            f"{path}: truncated or changed: expected the content that the sum of its part {damaged!r} was taken of"
        )
    return False


def locate(where: str) -> Path:
    """The checkpoint meant by a run folder (its last.pt) or by a checkpoint's own path."""
    path = Path(where)
    try:
        return path / "last.pt" if path.is_dir() else path
    except OSError:  # a name that is too long: load refuses it
        return path
