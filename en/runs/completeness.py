"""Finds what a checkpoint lacks of the run that wrote it, by its own configuration, position and ranks."""

from collections.abc import Iterator
from pathlib import Path

import torch

from en.config.reading import flatten
from en.errors import UserError
from en.runs.contents import Checkpoint, Weights, position_of
from en.runs.pictures import few
from en.runs.position import Position

SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")  # torch's GradScaler


def refuse_incomplete(saved: Checkpoint, path: Path) -> None:
    """Raises UserError that names the first part that a resumed run would miss, or take for another.

    The optimizer's momenta are for who has the parameters: see Learner.
    """
    for gap in gaps(saved):
        raise incomplete(path, gap)


def incomplete(path: Path, gap: str) -> UserError:
    """Makes the refusal of a checkpoint, which all ranks that read it meet."""
    error = UserError(f"{path}: expected the state of a whole run: {gap}")
    error.common = True
    return error


def averages(saved: Checkpoint, path: Path) -> Weights | None:
    """Returns the averaged weights, None of a run that keeps none. Raises UserError where they are missing."""
    for gap in gaps_in_averages(saved):
        raise incomplete(path, gap)
    return saved.ema


def gaps(saved: Checkpoint) -> Iterator[str]:
    """Yields what is missing in a checkpoint, or does not fit the rest of it: part, value and what was expected."""
    yield from gaps_in_averages(saved)
    yield from gaps_in_scaler(saved)
    yield from gaps_in_scores(saved)
    yield from gaps_in_ranks(saved)
    yield from gaps_in_losses(saved)
    yield from gaps_in_outcomes(saved)
    yield from gaps_in_images(saved)


def gaps_in_averages(saved: Checkpoint) -> Iterator[str]:
    decay = flatten(saved.config).get("train.ema_decay")
    if (decay is None) != (saved.ema is None):
        found = "None" if saved.ema is None else "there"
        yield f"ema is {found}: expected {'none' if decay is None else 'averages'} by its train.ema_decay={decay}"


def gaps_in_scaler(saved: Checkpoint) -> Iterator[str]:
    missing = [name for name in SCALER if name not in saved.scaler]
    if missing and flatten(saved.config).get("train.precision") == "float16":
        yield f"scaler lacks {', '.join(missing)}: expected that of its train.precision=float16"


def gaps_in_scores(saved: Checkpoint) -> Iterator[str]:
    position, best, evaluated = saved.position, saved.best, saved.last_evaluation
    if evaluated != Position() and best is None:
        yield f"best is None: expected the best score up to {position.words()}"
    if best is not None and not (0, 0) < place(position_of(best)) <= place(evaluated):
        found = f"best.epoch is {best['epoch']}" + (f", best.step {best['step']}" if "step" in best else "")
        yield f"{found}: expected 1 to {evaluated.epoch}, the finished epochs, or the steps evaluated after"
    is_due = position == evaluated != Position()
    if is_due != (saved.summary is not None):
        found, expected = ("None", "one") if saved.summary is None else ("there", "none")
        yield f"summary is {found}: expected {expected} after {position.words()}"


def gaps_in_ranks(saved: Checkpoint) -> Iterator[str]:
    found = len(saved.ranks)
    is_between = saved.position != saved.last_evaluation
    expected = saved.circumstances.get("ranks", found) if is_between else 0
    if found != expected or (is_between and not found):
        yield f"ranks is a list of {found}: expected {expected} after {saved.position.words()}"
    networks = 1 if saved.ema is None else 2
    for rank, state in enumerate(saved.ranks):
        if len(state["buffers"]) != networks:
            yield f"ranks.{rank}.buffers is a list of {len(state['buffers'])}: expected {networks}, one a network"


def place(position: Position) -> tuple[int, int]:
    """Orders positions."""
    return position.epoch, position.step


def steps_since(saved: Checkpoint) -> int:
    """Counts the steps from the last evaluation on."""
    here, there = saved.position, saved.last_evaluation
    batch = flatten(saved.config).get("train.batch_size")
    epoch_steps = saved.data["train"]["samples"] // batch if isinstance(batch, int) and batch > 0 else 0
    return (here.epoch - there.epoch) * epoch_steps + here.step - there.step


def gaps_in_losses(saved: Checkpoint) -> Iterator[str]:
    """Counts the steps: each is in the sum of the losses on every rank, or noted by the first one as left out."""
    losses = [state["losses"] for state in saved.ranks]
    left_out = sum("left_out" in note for own in losses for note in own["notes"])
    steps = steps_since(saved)
    expected = steps - left_out
    for rank, own in enumerate(losses):
        if own["steps"] != expected:
            where = f"position.step={saved.position.step} without the {left_out} that were left out"
            yield f"ranks.{rank}.losses.steps is {own['steps']}: expected {expected}, {where}"
        if own["left_out"] > left_out or own["left_out"] != losses[0]["left_out"]:
            yield f"ranks.{rank}.losses.left_out is {own['left_out']}: expected the same on all, {left_out} at most"
        told = own.get("told", (0.0, 0))[1]
        if told > own["steps"] or told != losses[0].get("told", (0.0, 0))[1]:
            yield f"ranks.{rank}.losses.told is of {told} steps: expected the same on all, {own['steps']} at most"


def gaps_in_outcomes(saved: Checkpoint) -> Iterator[str]:
    """Counts the samples under given labels: those of the steps that counted, but for mixed images."""
    found = [sum(losses["outcomes"]) for state in saved.ranks if "outcomes" in (losses := state["losses"])]
    batch = flatten(saved.config).get("train.batch_size")
    at_most = saved.ranks[0]["losses"]["steps"] * batch if found and isinstance(batch, int) else 0
    if found and "labels" not in saved.data:
        yield "losses.outcomes are there: expected none, of a run without data.labels"
    elif sum(found) > at_most:
        yield f"losses.outcomes add up to {sum(found)}: expected {at_most} at most, the samples of the steps"


def gaps_in_images(saved: Checkpoint) -> Iterator[str]:
    """Looks at the images that are to be shown."""
    for rank, state in enumerate(saved.ranks):
        images = state["losses"].get("images")
        if images is None:
            continue
        count, channels, height, width = images.shape if images.dim() == 4 else (0, 0, 0, 0)
        if images.dtype != torch.uint8 or channels != 3 or not 0 < count <= few(count, height or 1, width or 1):
            found = f"{images.dtype} of {list(images.shape)}"
            yield f"ranks.{rank}.losses.images are {found}: expected bytes of [N, 3, H, W], few and not empty"
