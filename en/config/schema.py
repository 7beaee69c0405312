"""The configuration: every key with its type, unit, default and limits; checked as a whole before anything runs.

A config key is the field's name here; the further keys of `norm` and `task` are the constructor arguments of the chosen
normalizer and task. What each means, for a resumed run, a suite or a report, its marker says: see `en.means`. That of a
section holds for its keys without one.
"""

import re
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from en.config.section import PathText, Section, Sides, Text, is_plain
from en.data.resolution import Resolution
from en.errors import shown
from en.means import Fixed, Length, Means, Operation, Pixels, Place, Recipe
from en.norm.registry import build_norm, norm_defaults
from en.size import Size, as_key, size_of
from en.tasks import Task, build_task

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=1, le=10**6)]
Seconds = Annotated[float, Field(gt=0, le=10**6)]
Mean = Annotated[float, Field(ge=0, le=255)]
Spread = Annotated[float, Field(ge=0.001, le=255)]
AnyTask = Annotated[Task, BeforeValidator(lambda keys: build_task(keys) if isinstance(keys, dict) else keys)]
Triple = Field(min_length=3, max_length=3)
Modules = Annotated[list[Text], Field(max_length=1000)]


class ModelConfig(Section):
    name: Text  # a network of torchvision, or timm/NAME; of task.name=segmentation, see docs/segmentation.md
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # probability, before the classifier
    zero_init_last_gamma: bool | None = None  # last scale of each residual block; null: the library's way
    options: Annotated[dict[str, Any], Field(max_length=100)] = {}  # further keyword arguments of the network's class

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, value in options.items():
            if not re.fullmatch(r"[A-Za-z_]\w{0,99}", key, re.ASCII):
                raise ValueError(f"expected names of arguments as keys, found {shown(key)}")
            if not is_plain(value):
                raise ValueError(
                    f"{key}={shown(value)}: expected a finite number, truth value, printable string, or list of them"
                )
        return options


class NormConfig(Section):
    model_config = ConfigDict(extra="allow")

    name: Text  # bn, in, ln, gn, sn, en

    @property
    def options(self) -> dict[str, Any]:
        """The chosen normalizer's constructor arguments."""
        return dict(self.model_extra or {})

    @property
    def all_options(self) -> dict[str, Any]:
        """Those and the defaults of the others, which may be other ones tomorrow."""
        return norm_defaults(self.name) | self.options

    @model_validator(mode="after")
    def _builds(self) -> "NormConfig":
        groups = self.options.get("groups")
        channels = (
            groups if isinstance(groups, int) and groups > 0 else 1
        )  # whether they divide a layer's, the network shows
        with torch.device("meta"):
            build_norm(self.name, channels, **self.options)
        return self


class DataConfig(Section):
    root: Place[PathText]  # ffcv: the output of scripts/prepare_data.py; folder: has train/CLASS and val/CLASS
    loader: Annotated[Literal["ffcv", "folder"], Means.ORDER] = "ffcv"  # what reads the images
    decode: Pixels[Literal["own", "ffcv"]] = "own"  # of FFCV's files; ffcv: its own kernels, other pixels, to compare
    verify: Operation[Literal["once", "always", "never"]] = (
        "once"  # bytes of FFCV's files by checksum; once a process and sample
    )
    resolution: Annotated[Sides, Means.RECIPE | Means.SCORES] = (
        224  # of the network's input in training, pixels: a square's side, or height and width
    )
    eval_resolution: Pixels[Sides | None] = None  # the same in evaluation; null: resolution
    mean: Pixels[Annotated[list[Mean], Triple]] = [123.675, 116.28, 103.53]  # of the channels, 0 to 255
    std: Pixels[Annotated[list[Spread], Triple]] = [58.395, 57.12, 57.375]  # the same scale
    workers: Place[Annotated[int, Field(ge=0, le=256)] | None] = (
        None  # of each rank; null: its cores, half of them on a CPU
    )
    timeout_s: Operation[Seconds] = 60.0  # seconds without a batch after which a run ends
    on_error: Recipe[Literal["raise", "skip"]] = (
        "raise"  # a damaged training image; skip: the next one of the set in its place
    )
    labels: Fixed[PathText | None] = (
        None  # of training, not the set's own: NAME in root's labels/, or FILE.csv; see docs/noisy_labels.md
    )

    @model_validator(mode="after")
    def _decodes(self) -> "DataConfig":
        if self.loader == "folder" and self.decode != "own":
            raise ValueError(f"decode={self.decode} with loader=folder: expected decode=own")
        return self

    @field_validator("mean", "std")
    @classmethod
    def _of_bytes(cls, values: list[float]) -> list[float]:
        # Values for images from 0 to 1, as torchvision has them, would make the network's input 255 times as large.
        if 0 < max(values) < 1:
            larger = [round(255 * value, 3) for value in values]
            raise ValueError(f"expected values for images from 0 to 255, such as {larger}, these times 255")
        return values


class ProgressiveConfig(Section):
    start_resolution: Sides  # in the first epoch; of a size that is no square, a number is the shorter side's
    until_epoch: Positive  # from this epoch on, data.resolution
    multiple: Whole = 32  # resolutions in between are rounded to multiples of this


class TrainConfig(Section):
    epochs: Length[Whole | None] = None  # passes over the training images; null: train.steps tells
    steps: Length[Annotated[int, Field(ge=1, le=10**9)] | None] = None  # of the optimizer, in the place of epochs
    batch_size: Annotated[Whole, Means.RECIPE | Means.ORDER]  # global: over all ranks and accumulated micro-batches
    accumulation: Recipe[Whole] = 1  # micro-batches of a step
    precision: Annotated[Literal["float32", "bfloat16", "float16"], Means.RECIPE | Means.SCORES] = (
        "float32"  # of autocast; float16 with a gradient scaler
    )
    channels_last: Recipe[bool] = True  # memory layout of images and weights; false: NCHW
    compile: Recipe[bool] = False  # the network by torch.compile
    clip_norm: Recipe[Positive | None] = None  # largest gradient norm; null: no clipping
    ema_decay: Recipe[Annotated[float, Field(gt=0, lt=1)] | None] = None  # of the weights, each step; null: off
    progressive: Recipe[ProgressiveConfig | None] = None
    freeze: Fixed[Modules | None] = None  # modules whose parameters stay, by names or patterns: [conv1, "features.*"]
    freeze_statistics: Fixed[Modules | None] = (
        None  # those whose normalizers keep their averages; null: as freeze; []: none
    )
    check_every: Operation[Whole] = (
        50  # steps between looks at losses and gradients; with on_nonfinite=raise no other step waits
    )
    on_nonfinite: Recipe[Literal["raise", "skip"]] = (
        "raise"  # a loss or gradient that is not finite; skip: leave the step out
    )
    nonfinite_limit: Operation[Whole] = 10  # with skip: so many in a row end the run

    @model_validator(mode="after")
    def _length(self) -> "TrainConfig":
        if (self.epochs is None) == (self.steps is None):
            found = (
                "epochs=null and steps=null" if self.epochs is None else f"epochs={self.epochs} and steps={self.steps}"
            )
            raise ValueError(f"{found}: expected a number of one of them, and the other null or left out")
        return self

    @model_validator(mode="after")
    def _micro_batches(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size={self.batch_size}: expected a multiple of accumulation={self.accumulation}")
        return self


class OptimConfig(Section):
    lr: Positive  # peak learning rate, for the global batch
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of SGD
    nesterov: bool = True  # momentum taken ahead
    weight_decay: NotNegative = 1e-4  # added to the gradient, times the weight
    head_lr_factor: Positive = 1.0  # learning rate of what the task calls its head / that of the rest
    decay_on: Literal["weights", "all"] = "weights"  # weights: not biases, nor what normalizers keep from it; all

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "OptimConfig":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true with momentum=0: expected momentum above 0")
        return self


class ScheduleConfig(Section):
    name: Literal["step", "cosine", "linear", "polynomial"] = "cosine"  # how the rate falls after the warm-up
    warmup_epochs: NotNegative = 0.0  # from 0 to optim.lr, linearly; may be a fraction
    steps: Annotated[list[Positive], Field(max_length=1000)] = [
        30,
        60,
        90,
    ]  # step: epochs at which the rate is multiplied by gamma
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1  # see steps
    power: Positive = 2.0  # polynomial: (1 - progress) ** power
    final_lr: NotNegative = 0.0  # at the end of training (cosine, linear, polynomial)

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: list[float]) -> list[float]:
        if steps != sorted(set(steps)):
            raise ValueError("expected ascending epochs")
        return steps


class EvaluationConfig(Section):
    every_steps: Whole | None = None  # of the whole run, and at its end; null: after each epoch, and at the end


class CheckpointConfig(Section):
    every_steps: Whole | None = None  # of the whole run; null: after each evaluation only
    keep: Whole = 3  # newest checkpoints kept, besides last.pt and best.pt


class DistributedConfig(Section):
    timeout_s: Seconds = 600.0  # seconds that a rank waits for the others before the run ends


class Config(Section):
    model: Annotated[ModelConfig, Means.RECIPE | Means.FIXED | Means.SCORES]
    norm: Annotated[NormConfig, Means.FIXED | Means.SCORES]  # no recipe: it is what is compared on one
    task: Pixels[SerializeAsAny[AnyTask]] = build_task({})
    data: DataConfig
    train: TrainConfig
    optim: Fixed[OptimConfig]
    schedule: Fixed[ScheduleConfig] = ScheduleConfig()
    evaluation: Fixed[EvaluationConfig] = EvaluationConfig()
    checkpoint: Operation[CheckpointConfig] = CheckpointConfig()
    distributed: Operation[DistributedConfig] = DistributedConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32), Means.OWN | Means.FIXED] = (
        0  # of weights, order, crops and all else that is drawn
    )
    device: Operation[Literal["auto", "cpu", "cuda"]] = "auto"  # auto: a GPU where there is one
    deterministic: Recipe[bool] = False  # only algorithms that give the same bits each time (GPU: slower)
    init: Fixed[PathText | None] = (
        None  # weights to begin with: a run folder, a checkpoint, or another program's state_dict
    )
    run_dir: Annotated[PathText | None, Means.OWN | Means.PLACE] = None  # null: runs/CONFIG-NORM-sSEED-TIME
    resume: Annotated[PathText | None, Means.OWN | Means.PLACE] = (
        None  # a run folder, a checkpoint, or auto: run_dir's newest checkpoint, or a new run in it
    )

    def complete(self) -> dict[str, Any]:
        """All values, with today's defaults of the normalizer's options that are not given: what runs differ by."""
        return completed(self.model_dump())

    @property
    def training_resolution(self) -> Resolution:
        """Sizes of the training images, epoch by epoch."""
        full, progressive = size_of(self.data.resolution), self.train.progressive
        if progressive is None:
            return Resolution(full, full, 0, 1)
        start = start_size(progressive.start_resolution, full)
        return Resolution(full, start, progressive.until_epoch, progressive.multiple)

    @property
    def training_sizes(self) -> list[Size]:
        """Every size of the training images in the course of the run, or of one that is long enough."""
        return self.training_resolution.sizes(self.train.epochs or 10**6)

    @property
    def eval_resolution(self) -> Size:
        """Size of the network's input in evaluation."""
        return size_of(self.data.eval_resolution or self.data.resolution)

    @property
    def shown_size(self) -> Size | None:
        """Size of the images that loaders give in evaluation; None where they keep their own."""
        return None if self.task.own_sizes and self.data.eval_resolution is None else self.eval_resolution

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.resume == "auto" and self.run_dir is None:
            raise ValueError("resume=auto with run_dir=null: expected the folder to resume in")
        if self.train.epochs is not None and self.schedule.warmup_epochs > self.train.epochs:
            warmup = self.schedule.warmup_epochs
            raise ValueError(f"schedule.warmup_epochs={warmup}: expected at most train.epochs={self.train.epochs}")
        if self.schedule.final_lr > self.optim.lr:
            raise ValueError(f"schedule.final_lr={self.schedule.final_lr}: expected at most optim.lr={self.optim.lr}")
        start, full = self.training_resolution.start, self.training_resolution.full
        if start[0] > full[0] or start[1] > full[1]:
            limit = f"data.resolution={self.data.resolution}"
            raise ValueError(f"train.progressive.start_resolution={as_key(start)}: expected at most {limit}")
        return self


def start_size(key: int | list[int], full: Size) -> Size:
    """The size that progressive resizing begins with; a number is the shorter side, and the other in proportion."""
    if isinstance(key, list):
        return size_of(key)
    height, width = (max(1, round(key * side / min(full))) for side in full)
    return height, width


def completed(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values with the defaults of those of its normalizer's options that it lacks."""
    norm = tree.get("norm")
    if not isinstance(norm, dict):
        return tree
    name = norm.get("name")
    return tree | {"norm": {"name": name} | norm_defaults(str(name)) | norm}
