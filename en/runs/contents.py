"""Defines what a checkpoint holds: everything that the future of a run depends on."""

from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from en.config.section import Count
from en.errors import RunError, UserError, shown, warn
from en.norm.registry import INHERITED, norm_defaults
from en.runs.foreign import refuse_foreign
from en.runs.position import Position
from en.runs.row import OUTCOMES
from en.runs.summary import Summary

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
    """One rank's losses since the last evaluation, and counts of its samples under given labels: see EpochRecord.

    told is the sum and the steps up to the last point of the loss by step; images are what the first rank keeps of its
    first batch, uint8 (N, 3, H, W).
    """

    sum: Sum
    steps: Count
    notes: list[Plain]
    left_out: Count
    outcomes: NotRequired[Annotated[list[Count], Field(min_length=len(OUTCOMES), max_length=len(OUTCOMES))]]
    told: NotRequired[tuple[Sum, Count]]
    images: NotRequired[Tensor]


class RankState(TypedDict):
    """Gathers what one rank has of its own between evaluations: losses, and buffers of the network and its averages."""

    losses: Losses
    buffers: list[Weights]


class Split(TypedDict):
    """One split of a data set: its images, and the digest of what it consists of (see ImageLoader)."""

    samples: Count
    digest: str


class Data(TypedDict):
    """Identifies what a run was trained and scored on.

    labels is the digest of the sidecar whose labels it was trained with, where it had one.
    """

    name: str
    loader: str
    train: Split
    val: Split
    labels: NotRequired[str]


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
        """Returns what the file holds."""
        held = {name: getattr(self, name) for name in type(self).model_fields if name != "digest"}
        return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in held.items()}


def position_of(best: Best) -> Position:
    """Returns where the best score was reached."""
    return Position(epoch=best["epoch"], step=best.get("step", 0))


def checked(found: Any, path: Path, digest: str) -> Checkpoint:
    """Checks what was in a file, also in one of an earlier version.

    Raises: UserError for what another program or version wrote, and for parts that are missing or of another type.
    """
    refuse_other_format(found, path)
    try:
        return Checkpoint.model_validate({**as_of_today(found, path), "digest": digest})
    except (ValidationError, TypeError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else []
        places = dict.fromkeys(".".join(map(str, problem["loc"][:3])) for problem in problems)
        named = ", ".join(list(places)[:8]) or "all of it"
        raise UserError(
            f"{path}: expected a checkpoint of this package; missing, unknown or of another type: {named}"
        ) from error


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
