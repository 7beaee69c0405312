"""Where a run begins, and whether it may resume there."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from en.config.reading import flatten, validate
from en.config.schema import Config, completed
from en.data import ImageLoader
from en.distributed.ranks import Ranks
from en.errors import UserError, in_one_line
from en.machine import processor
from en.norm.built import layers_as_built, rebuild
from en.norm.registry import norm_defaults
from en.progress import tell
from en.runs import checkpoint
from en.runs.completeness import refuse_incomplete
from en.runs.contents import Best, Checkpoint, Data
from en.runs.course import course_of
from en.runs.folder import new_run_path
from en.runs.position import Position
from en.threads import keep_others, were_chosen

# What a resumed run has to share with its beginning, sections and keys.
FIXED = ("model", "norm.name", "task.name", "optim", "schedule", "seed", "evaluation", "init",
         "train.freeze", "train.freeze_statistics")  # fmt: skip
ORDER = ("train.batch_size", "data.loader")  # what the samples that are left of an epoch depend on
PLACES = ("run_dir", "resume")  # keys that say where a run lies, not what it does
EVALUATION_IMAGES = "evaluation images"  # among the keys that have changed


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: of the run.
        origin: the checkpoint that it resumes from; None for a run that begins with the seed.
        saved: what that checkpoint holds.
    """

    folder: Path
    origin: Path | None = None
    saved: Checkpoint | None = None

    @property
    def position(self) -> Position:
        return self.saved.position if self.saved else Position()

    @property
    def evaluated(self) -> Position:
        """Where the last evaluation was."""
        return self.saved.last_evaluation if self.saved else Position()

    def best(self, config: Config, data: Data) -> Best | None:
        """Returns the best score so far, if there is one that compares with those to come; see `best_begins_anew`."""
        return self.saved.best if self.saved and not best_begins_anew(self.saved, config, data) else None


def find_start(config: Config, config_path: str) -> Start:
    """Where the run begins, by `resume`:

    1. unset: with the seed, in a new folder;
    2. a run folder: from its newest whole checkpoint;
    3. a checkpoint: from that one. When torchrun starts the ranks again, from the run's newest, as 2;
    4. auto: from run_dir's newest whole checkpoint, or, where it has none, with the seed.

    Raises: UserError for a checkpoint that is missing or damaged, and for a folder in which none is whole.
    """
    resume = config.resume
    if resume is None:
        return Start(new_run_path(config, config_path))
    given = new_run_path(config, config_path) if resume == "auto" else Path(resume)
    refuse_elsewhere(config, given)
    folder = given if resume == "auto" or given.is_dir() else run_of(given)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if folder != given and not restarted:
        return Start(folder, given, checkpoint.load(given))
    found = checkpoint.newest(folder)
    if found is not None:
        return Start(folder, *found)
    if resume != "auto":
        raise UserError(f"--resume {resume}: expected a run folder with a checkpoint, found none")
    if Ranks.from_environment().is_first:
        tell(f"resume=auto: {folder} has no checkpoint yet: a new run begins")
    return Start(folder)


def keep_threads(saved: Checkpoint | None) -> None:
    """Goes on with the threads of the checkpoint, on which the bits of a step depend, where nobody asked for others.

    Not on another processor, where the bits are others anyway, nor with more threads than there are cores.
    """
    then = saved.circumstances if saved else {}
    threads, cores = then.get("threads"), len(os.sched_getaffinity(0))
    if were_chosen() and isinstance(threads, int) and threads <= cores and then.get("processor") == processor():
        torch.set_num_threads(threads)
        keep_others()


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent if path.parent.name == checkpoint.STEPS else path.parent


def refuse_elsewhere(config: Config, start: Path) -> None:
    """Raises UserError when run_dir names another folder than that of the run that is resumed."""
    home = run_of(start) if start.suffix == ".pt" else start
    if config.run_dir is not None and start.exists() and Path(config.run_dir).resolve() != home.resolve():
        raise UserError(f"run_dir={config.run_dir}: expected {home}, the folder of --resume {config.resume}, or none")


def check_resumable(saved: Checkpoint, config: Config, data: Data, classes: list[str], origin: Path) -> None:
    """Raises UserError when a run would not resume as the one that it began as, or not within the same epoch.

    That includes a checkpoint in which a part of the run's state is missing.
    """
    refuse_incomplete(saved, origin)
    if saved.classes != classes:
        raise UserError(f"data.root={config.data.root}: expected the classes that {origin} was trained on")
    for part in FIXED if saved.norms else (*FIXED, "norm"):
        now, then = (flatten({part: value_of(part, tree)}) for tree in (config.complete(), completed(saved.config)))
        for key in {**now, **then}:
            if now.get(key) != then.get(key):
                raise UserError(f"{key}={now.get(key)}: expected what {origin} began with, {then.get(key)}")
    refuse_other_data(saved.data, data, config.data.root, origin)
    changed = changes(saved, config)
    position = saved.position
    for key in ORDER if position.step else ():
        if key in changed:
            before, value = changed[key]
            raise UserError(f"{key}={value}: expected the {before} of {origin}, which is in the middle of an epoch")
    refuse_another_length(saved, config, data["train"]["samples"], origin)


def refuse_another_length(saved: Checkpoint, config: Config, samples: int, origin: Path) -> None:
    """Raises UserError when a run would be told in another way than it began with, or be over before its checkpoint."""
    position, course, changed = saved.position, course_of(config, samples), changes(saved, config)
    steps, epochs = course.epoch_steps, config.train.epochs
    before, now = changed.get("train.steps", (None, None))
    if (before is None) != (now is None):
        raise UserError(f"train.steps={now}: expected what {origin} began with, {before}")
    if course.by_step and "train.batch_size" in changed:
        before, now = changed["train.batch_size"]
        raise UserError(f"train.batch_size={now}: expected {before}, in whose steps {origin} counts")
    if epochs is None and course.done(position) > course.steps:
        raise UserError(
            f"train.steps={course.steps}: expected at least {course.done(position)}, which {origin} has done"
        )
    if position.step and not (position.step <= steps and (epochs is None or position.epoch < epochs)):
        raise UserError(f"{origin}: {position.words()}: expected at most {steps} steps, {epochs} epochs")
    if epochs is not None and position.epoch > epochs:
        raise UserError(f"train.epochs={epochs}: expected at least {position.epoch}, which {origin} has finished")


def rebuild_as_begun(model: nn.Module, saved: Checkpoint, config: Config, origin: Path) -> None:
    """Gives a network's normalizers the options that a run began with, where no configuration has given them.

    So a run outlives other defaults, of this package or of the network's library. Raises: UserError for an option of
    the configurations that is another one now.
    """
    now, given = layers_as_built(model), {*config.norm.options, *saved.norm_options}
    if saved.norms and now.keys() != saved.norms.keys():
        raise UserError(f"model.name={config.model.name}: expected the {len(saved.norms)} normalizers of {origin}")
    defaults = norm_defaults(config.norm.name)
    for place, options in saved.norms.items():
        for key in given:
            then, value = options.get(key, defaults.get(key)), now[place].get(key)
            if then != value:
                raise UserError(f"norm.{key}={value}: expected what {origin} began with, {then} ({place})")
    try:
        rebuild(model, saved.norms)
    except ValueError as error:
        raise UserError(f"{origin}: norms.{error}") from error


def value_of(key: str, tree: Any) -> Any:
    """What a configuration holds under a dotted key."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def refuse_other_data(then: Data, now: Data, root: str, origin: Path) -> None:
    """Raises UserError unless the images are those that a run was trained on, as far as two loaders can tell.

    Fewer evaluation images are no mistake: damaged ones may have had to go. See `fewer_to_evaluate`.
    """
    for split in ("train", "val"):
        before, after = then[split], now[split]
        if split == "val" and after["samples"] < before["samples"]:
            continue
        same_loader = then["loader"] == now["loader"]
        if before["samples"] != after["samples"] or (same_loader and before["digest"] != after["digest"]):
            raise UserError(
                f"data.root={root}: expected the {split} images that {origin} was trained on, {before['samples']} with "
                f"the digest {before['digest'][:12]}, found {after['samples']} with {after['digest'][:12]}"
            )


def changes(saved: Checkpoint, config: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values have changed since the checkpoint was written, with both values."""
    then, now = flatten(completed(saved.config)), flatten(config.complete())
    keys = [key for key in {**now, **then} if key not in PLACES]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def fewer_to_evaluate(saved: Checkpoint, data: Data) -> dict[str, tuple[int, int]]:
    """Returns the number of evaluation images before and now, by EVALUATION_IMAGES; empty where there are no fewer."""
    then, now = saved.data["val"]["samples"], data["val"]["samples"]
    return {EVALUATION_IMAGES: (then, now)} if now < then else {}


def best_begins_anew(saved: Checkpoint, config: Config, data: Data) -> bool:
    """Tells whether scores do not compare with those before: of fewer images, or of other pixels of them."""
    then = validate(saved.config, "the checkpoint")
    return bool(fewer_to_evaluate(saved, data)) or evaluated_pixels(then) != evaluated_pixels(config)


def evaluated_pixels(config: Config) -> tuple[Any, ...]:
    """Lists what decides which pixels of an image the network sees in evaluation."""
    data = config.data
    return config.task.crop(training=False), config.task.manner, config.shown_size, data.decode, data.mean, data.std


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


def resumption(saved: Checkpoint, config: Config, data: Data, now: dict[str, Any]) -> dict[str, Any]:
    """What provenance.json keeps of a start that resumes from a checkpoint.

    Args:
        data: the images of this start.
        now: the circumstances of this process.
    Returns: under "resumed_at" the position, under "changed" and "not_bit_for_bit" what differs, before and now, under
        "not_known" the circumstances that the checkpoint, of an earlier version, does not tell, as they are now, under
        "best_anew" whether the best score begins anew.
    """
    then = saved.circumstances
    other = {key: (then[key], value) for key, value in now.items() if key in then and then[key] != value}
    return {
        "resumed_at": saved.position.model_dump(),
        "changed": {**changes(saved, config), **fewer_to_evaluate(saved, data)},
        "not_bit_for_bit": other,
        "not_known": {key: value for key, value in now.items() if key not in then},
        "best_anew": best_begins_anew(saved, config, data),
    }


def differences(resumed: dict[str, Any]) -> list[str]:
    """What a resumed run does differently from before, a line each."""
    lines = [f"resumes with {key}={now} (was {before})" for key, (before, now) in resumed["changed"].items()]
    if resumed["best_anew"]:
        lines.append(
            "resumes with best.pt begun anew: scores of other images or pixels do not compare with those before"
        )
    other = [
        f"{key}={shorten(now)} (was {shorten(before)})" for key, (before, now) in resumed["not_bit_for_bit"].items()
    ]
    lines += anew(resumed["changed"])
    if other:
        lines.append(f"resumes, but not bit for bit: {', '.join(other)}")
    if unknown := [f"{key} (now {shorten(value)})" for key, value in resumed["not_known"].items()]:
        lines.append(f"resumes, perhaps not bit for bit: the checkpoint does not tell its {', '.join(unknown)}")
    return [in_one_line(line) for line in lines]


def anew(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Says what a resumed run keeps that its checkpoint does not have, because the keys that ask for it are new."""
    lines = []
    before, now = changed.get("train.ema_decay", (None, None))
    if before is None and now is not None:
        lines.append(f"train.ema_decay={now}: the averages begin at the weights of the checkpoint, which has none")
    if changed.get("train.precision", ("", ""))[1] == "float16":
        lines.append("train.precision=float16: the scaler of the gradients begins anew")
    return lines


def shorten(value: Any) -> str:
    """A digest in 12 digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
