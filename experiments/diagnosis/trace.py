"""The first steps of a training, watched: losses, gradients, and what every normalizer does to both."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from en.build import build_network, build_to_device, check_batch_size, open_loaders
from en.config.schema import Config
from en.data import naming_dead_workers
from en.distributed.device import choose_device
from en.distributed.ranks import only_process
from en.errors import RunError
from en.norm import Normalizer
from en.runs.position import Position
from en.training.epoch import accumulate, steps_of
from en.training.learner import build_learner
from en.training.record import EpochRecord
from en.training.schedule import schedule_of
from experiments.diagnosis.gains import Gain, gains_of


@dataclass(frozen=True)
class Step:
    """A step of training.

    Attributes:
        number: counted from 1.
        loss: of its batch, before the step.
        gradient_norm: of the whole network's gradient.
        gains: of every normalizer's branches by the layer's name, bottom to top; empty where nobody looked.
    """

    number: int
    loss: float
    gradient_norm: float
    gains: dict[str, list[Gain]]


def trace(config: Config, steps: int, every: int) -> Iterator[Step]:
    """Trains a configuration's first steps as train.py does, in this process, without a run folder.

    Args:
        steps: how many, over as many epochs as they take.
        every: steps from one look at the layers to the next, the first one included.
    Yields: each step that was taken.
    Raises: UserError for what train.py refuses; RunError once the loss or the gradient is not finite.
    """
    ranks = only_process()
    loader = open_loaders(config, ranks, ["train"])["train"]
    check_batch_size(config, ranks, loader.samples)
    device = choose_device(config.device, ranks)
    learner = build_learner(config, build_network(config, len(loader.classes)), device, ranks)
    to_device, schedule, each = build_to_device(config, device), schedule_of(config), steps_of(config, loader)
    record = EpochRecord(device)
    learner.forward.train()
    with naming_dead_workers():
        for number in range(steps):
            here = Position(epoch=number // each, step=number % each)
            if here.step == 0:
                batches = loader.train_epoch(here.epoch, config.training_resolution.at(here.epoch), 0)
            torch.manual_seed(here.seed(config.seed, ranks.rank))
            with ExitStack() as looking:
                seen = look_at(learner.model, looking) if number % every == 0 else {}
                loss = accumulate(config, learner, loader, batches, to_device, record, here.after_step())
            norm = learner.gradient_norm()
            gains = {name: list(gains_of(*parts)) for name, parts in seen.items()}
            found = Step(number + 1, float(loss), float("nan") if norm is None else float(norm), gains)
            yield found
            if not loss.isfinite() or (norm is not None and not norm.isfinite()):
                raise RunError(f"step {found.number}: loss {found.loss}, gradient norm {found.gradient_norm}")
            learner.step(schedule.rate(here.time(each)))
    loader.close()


def look_at(model: nn.Module, until: ExitStack) -> dict[str, list[Any]]:
    """Has every normalizer note its input and its output's gradient, of the last micro-batch of a step.

    Returns: by the layer's name the layer, X and dY, filled in by a forward and a backward pass.
    """
    seen: dict[str, list[Any]] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen[name] = [layer, inputs[0].detach()]
        output.register_hook(seen[name].append)  # type: ignore[no-untyped-call]

    for name, layer in model.named_modules():
        if isinstance(layer, Normalizer):
            until.callback(layer.register_forward_hook(partial(note, name)).remove)
    return seen
