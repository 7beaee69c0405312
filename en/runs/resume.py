"""Decides whether a run may resume at a checkpoint, as the one that it began as, and says what is different then."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from en.config.meaning import Changes, changes, deciding, names_the_run, same_pixels
from en.config.reading import validate
from en.config.schema import Config, completed
from en.data import ImageLoader
from en.data.labels import relabelling
from en.errors import UserError, in_one_line, listed
from en.machine import processor
from en.means import Means
from en.norm.built import layers_as_built, rebuild
from en.norm.registry import norm_defaults
from en.runs.completeness import refuse_incomplete
from en.runs.contents import Checkpoint, Data
from en.runs.course import course_of
from en.runs.position import Position
from en.threads import keep_others, were_chosen

EVALUATION_IMAGES = "evaluation images"  # among the keys that have changed


def keep_threads(then: Mapping[str, Any]) -> None:
    """Goes on with the threads of the checkpoint, on which the bits of a step depend, where nobody asked for others.

    Not on another processor, where the bits are others anyway, nor with more threads than there are cores.

    Args:
        then: the circumstances in the checkpoint; empty without one.
    """
    threads, cores = then.get("threads"), len(os.sched_getaffinity(0))
    if were_chosen() and isinstance(threads, int) and threads <= cores and then.get("processor") == processor():
        torch.set_num_threads(threads)
        keep_others()


def check_resumable(saved: Checkpoint, config: Config, data: Data, classes: list[str], origin: Path) -> None:
    """Raises UserError when a run would not resume as the one that it began as, or not within the same epoch.

    That includes a checkpoint in which a part of the run's state is missing.
    """
    refuse_incomplete(saved, origin)
    if saved.classes != classes:
        raise UserError(f"data.root={config.data.root}: expected the classes that {origin} was trained on")
    changed = changed_keys(saved, config)
    for key in deciding(changed, Means.FIXED):
        # A normalizer's options are compared as they were built, where the checkpoint tells: see `rebuild_as_begun`.
        if key == "norm.name" or not key.startswith("norm.") or not saved.norms:
            before, now = changed[key]
            raise UserError(f"{key}={now}: expected what {origin} began with, {before}")
    refuse_other_data(saved.data, data, config.data.root, origin)
    refuse_other_labels(saved.data, data, config.data.labels, origin)
    for key in deciding(changed, Means.ORDER) if saved.position.step else ():
        before, now = changed[key]
        raise UserError(f"{key}={now}: expected the {before} of {origin}, which is in the middle of an epoch")
    refuse_another_length(saved, config, data["train"]["samples"], origin)


def refuse_another_length(saved: Checkpoint, config: Config, samples: int, origin: Path) -> None:
    """Raises UserError when a run would be told in another way than it began with, or be over before its checkpoint."""
    position, course, changed = saved.position, course_of(config, samples), changed_keys(saved, config)
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


def refuse_other_labels(then: Data, now: Data, labels: str | None, origin: Path) -> None:
    """Raises UserError unless the labels of training are those that a run began with, where it had a sidecar's."""
    before, after = then.get("labels"), now.get("labels")
    if before != after:
        digests = [f"the digest {digest[:12]}" if digest else "those of the set" for digest in (before, after)]
        expected = f"expected the labels that {origin} was trained with, {digests[0]}"
        raise UserError(f"data.labels={labels}: {expected}, found {digests[1]}")


def changed_keys(saved: Checkpoint, config: Config) -> Changes:
    """Returns the keys whose values have changed since the checkpoint was written, but for those that name the run."""
    found = changes(completed(saved.config), config.complete())
    return {key: both for key, both in found.items() if not names_the_run(key)}


def fewer_to_evaluate(saved: Checkpoint, data: Data) -> dict[str, tuple[int, int]]:
    """Returns the number of evaluation images before and now, by EVALUATION_IMAGES; empty where there are no fewer."""
    then, now = saved.data["val"]["samples"], data["val"]["samples"]
    return {EVALUATION_IMAGES: (then, now)} if now < then else {}


def best_begins_anew(saved: Checkpoint, config: Config, data: Data) -> bool:
    """Tells whether scores do not compare with those before: of fewer images, or of other pixels of them."""
    return bool(fewer_to_evaluate(saved, data)) or not same_pixels(validate(saved.config, "the checkpoint"), config)


def describe_data(loader: str, train: ImageLoader, val: ImageLoader) -> Data:
    """Returns what a checkpoint keeps of the images of both splits.

    Args:
        loader: data.loader, whose digests they are.
    """
    data: Data = {
        "name": train.name,
        "loader": loader,
        "train": {"samples": train.samples, "digest": train.digest},
        "val": {"samples": val.samples, "digest": val.digest},
    }
    if relabelled := relabelling(train):
        data["labels"] = relabelled.sidecar.digest
    return data


def resumption(saved: Checkpoint, config: Config, data: Data, now: dict[str, Any]) -> dict[str, Any]:
    """Returns what provenance.json keeps of a start that resumes from a checkpoint.

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
        "changed": {**changed_keys(saved, config), **fewer_to_evaluate(saved, data)},
        "not_bit_for_bit": other,
        "not_known": {key: value for key, value in now.items() if key not in then},
        "best_anew": best_begins_anew(saved, config, data),
    }


def differences(resumed: dict[str, Any]) -> list[str]:
    """Lists what a resumed run does differently from before, a line each; nothing for a run that begins."""
    if not resumed:
        return []
    lines = whereabouts(resumed) + [
        f"resumes with {key}={now} (was {before})" for key, (before, now) in resumed["changed"].items()
    ]
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


def whereabouts(resumed: dict[str, Any]) -> list[str]:
    """Says that a run goes on elsewhere than it began, or without steps that it has done."""
    origin, words = resumed["resumed_from"]["checkpoint"], Position.model_validate(resumed["resumed_at"]).words()
    lines = []
    if "branch_of" in resumed:
        lines.append(f"resumes as a branch of {resumed['branch_of']}: from {origin}, {words}")
    if "dropped" in resumed:
        lines.append(f"resumes from {origin}, {words}: drops {listed(resumed['dropped'])}, and their rows of the logs")
    return lines


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
