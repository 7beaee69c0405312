"""Checkpoints: written whole or not at all, checked by their SHA-256, read without running code from them."""

import contextlib
import hashlib
import io
import os
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from en import durable
from en.config.section import Count
from en.durable import PARTIAL
from en.errors import RunError, UserError, shown, warn
from en.norm.registry import INHERITED, norm_defaults
from en.runs.foreign import object_in, refuse_foreign
from en.runs.position import Position
from en.runs.summary import Summary

STEPS = "checkpoints"
FORMAT = 5  # of the file's content; counted up with each change of it, or of what a configuration in it means
FORMATS_BEFORE = (3, 4)  # which are read too: see as_of_today
Weights = dict[str, Tensor]
Sum = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Plain = dict[str, JsonValue]


class Best(TypedDict):
    """The best score on the evaluation set so far, and the position at which it was reached: epochs, and steps."""

    score: Sum
    epoch: Count
    step: NotRequired[Count]


class Losses(TypedDict):
    """One rank's losses since the last evaluation: see EpochRecord."""

    sum: Sum
    steps: Count
    notes: list[Plain]
    left_out: Count


class RankState(TypedDict):
    """Gathers what one rank has of its own between evaluations: losses, and buffers of the network and its averages."""

    losses: Losses
    buffers: list[Weights]


class Split(TypedDict):
    """One split of a data set: its images, and the digest of what it consists of (see ImageLoader)."""

    samples: Count
    digest: str


class Data(TypedDict):
    """What a run was trained and scored on."""

    name: str
    loader: str
    train: Split
    val: Split


class Checkpoint(BaseModel):
    """Everything that the future of a run depends on, in plain values and tensors.

    Attributes:
        model, ema: state_dict of the network and, where they are kept, of its averages.
        optimizer, scaler: their state_dict.
        position: how much of the run is done.
        ranks: what each rank has of its own; empty after an evaluation.
        best: the best score so far; None before the first evaluation.
        summary: what summary.json is to say; None between evaluations.
        evaluated: the position of the last evaluation; None: at the beginning of the current epoch.
        config: the resolved configuration, of the normalizer those options that were given.
        norms: all options of each normalizer, by its place in the network; empty in a file of an earlier version.
        classes: names in the order of the class numbers.
        data: what the run was trained and scored on.
        circumstances: what the bits of a step depend on besides (see provenance.circumstances).
        digest: SHA-256 of the file that it was read from; not in the file.
        format: FORMAT.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)

    model: Weights
    ema: Weights | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    position: Position
    ranks: list[RankState]
    best: Best | None
    summary: Summary | None
    evaluated: Position | None = None
    config: Plain
    norms: dict[str, Plain]
    classes: list[str]
    data: Data
    circumstances: Plain
    digest: str = ""
    format: int = FORMAT

    @property
    def last_evaluation(self) -> Position:
        return Position(epoch=self.position.epoch) if self.evaluated is None else self.evaluated

    @property
    def norm_options(self) -> Plain:
        """The options of the normalizer that were given."""
        norm = self.config.get("norm")
        return {key: value for key, value in norm.items() if key != "name"} if isinstance(norm, dict) else {}

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        held = {name: getattr(self, name) for name in type(self).model_fields if name != "digest"}
        return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in held.items()}


def position_of(best: Best) -> Position:
    """Where the best score was reached."""
    return Position(epoch=best["epoch"], step=best.get("step", 0))


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
    """Where a run's checkpoint of a position lies."""
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
    try:
        content = path.read_bytes() if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}: expected a checkpoint") from error
    if content is None:
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}: expected a checkpoint")
    digest = hashlib.sha256(content).hexdigest()
    summed = refuse_changed(path, content, digest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write, which it then refuses
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for files that it did not write
        reason = object_in(error) or (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(f"{path}: expected a checkpoint, which does not load: {reason[:200]}") from error
    refuse_other_format(found, path)
    try:
        checkpoint = Checkpoint.model_validate({**as_of_today(found, path), "digest": digest})
    except (ValidationError, TypeError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else []
        places = dict.fromkeys(".".join(map(str, problem["loc"][:3])) for problem in problems)
        named = ", ".join(list(places)[:8]) or "all of it"
        raise UserError(
            f"{path}: expected a checkpoint of this package; missing, unknown or of another type: {named}"
        ) from error
    if not summed:
        warn(f"{path}: {sum_path(path).name} is missing: checked by the sums inside alone")
    return checkpoint


def refuse_other_format(found: Any, path: Path) -> None:
    """Raises UserError for content of another form than this version writes, and for that of another program."""
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a checkpoint of this package, found a {type(found).__name__}")
    refuse_foreign(found, path)
    form = found.get("format", 1)
    if not isinstance(form, int) or form not in (FORMAT, *FORMATS_BEFORE):
        raise UserError(f"{path}: format {shown(form)}, of another version of this package: expected {FORMAT}")


def as_of_today(found: Any, path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint in today's form, with a warning of what is assumed of an earlier one.

    Format 4 has no rate of the head. Format 3 has, besides, the defaults of eps, momentum and sync beside the options
    that were given, although the network took those of its library's layers.
    """
    content: dict[str, Any] = found
    if content.get("format", 1) == FORMAT:
        return content
    config = content.get("config")
    norm, optim = (config.get("norm"), config.get("optim")) if isinstance(config, dict) else (None, None)
    if not isinstance(config, dict) or not isinstance(norm, dict) or not isinstance(optim, dict):
        return content
    config = {**config, "optim": {"head_lr_factor": 1.0, **optim}}
    if content["format"] > 3:
        return {**content, "config": config, "format": FORMAT}
    defaults = norm_defaults(str(norm.get("name")))
    taken = [key for key in INHERITED if key in norm and norm[key] == defaults.get(key)]
    if taken:
        warn(f"{path}: of an earlier version: {', '.join(taken)} of its normalizers are taken to be the network's own")
    kept = {key: value for key, value in norm.items() if key not in taken}
    return {**content, "config": {**config, "norm": kept}, "norms": {}, "format": FORMAT}


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


def load_weights(model: nn.Module, state: Weights, path: Path) -> None:
    """Puts a checkpoint's weights into a model.

    Raises: UserError when they are those of another network; RunError when they are not finite.
    """
    own = model.state_dict()
    for name, value in state.items():
        if name in own and value.dtype != own[name].dtype:
            raise UserError(f"{path}: {name}: expected {own[name].dtype}, found {value.dtype}")
    # What torch keeps beside the values, the versions of the layers, is not in the file; some networks ask for it.
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(versioned)
    except Exception as error:  # torch raises errors of many kinds for what it did not save
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: expected the weights of this configuration's network: {detail}") from error
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(
                f"{path}: {name} is not finite: expected the weights of a network whose training did not diverge"
            )
