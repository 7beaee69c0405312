"""A task's metrics, exact over all ranks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from en.data import Batch
from en.data.to_device import ToDevice
from en.errors import RunError
from en.progress import Progress
from en.runs.scores import Scores
from en.size import Size
from en.tasks import Task

Watcher = Callable[[Batch, Tensor, Tensor], None]
"""Sees a batch, its predictions and, on the device, its targets."""


class EvaluationSet(Protocol):
    """Gives what is evaluated on: a loader's split, or a part of it (see ImageLoader)."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def samples(self) -> int: ...

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]: ...


@torch.inference_mode()
def evaluate(
    task: Task,
    model: nn.Module,
    loader: EvaluationSet,
    size: Size | None,
    to_device: ToDevice,
    visible: bool,
    watchers: Sequence[Watcher] = (),
) -> Scores:
    """The task's metrics of the bare model over every image of a set, the same on all ranks.

    The model has to be the same on all ranks (see average_buffers). Each takes its part of the images; sums are
    added up.

    Args:
        watchers: what is to see each batch of this rank besides, its predictions and its targets on the device.
    Raises: RunError when the images seen are not as many as the set has, and when a metric is not finite, or the score
        no number.
    """
    metrics = task.metrics(len(loader.classes)).to(to_device.device)
    metrics.set_dtype(torch.float64)
    seen = SumMetric().to(to_device.device)
    seen.set_dtype(torch.float64)
    was_training = model.training
    model.eval()
    with Progress("evaluating", loader.samples, visible) as progress:
        for batch in loader.eval_epoch(size):
            images, targets = to_device(batch.images, batch.targets)
            predictions = task.predict(model, images)
            metrics.update(predictions, targets)
            for watcher in watchers:
                watcher(batch, predictions, targets)
            seen.update(torch.full((), len(images), device=to_device.device))
            progress.advance(len(images))
    model.train(was_training)
    if (images_seen := int(seen.compute())) != loader.samples:
        raise RunError(f"evaluation saw {images_seen} images, expected the {loader.samples} of the set")
    scores = Scores.of(metrics.compute())
    if task.score not in scores.values:
        raise RunError(f"the {task.score} is no single number: expected one, by which best.pt is chosen")
    for name, value in scores.values.items():
        if not math.isfinite(value):
            raise RunError(
                f"the {name} is not finite in evaluation: {value} over the {loader.samples} images of the set"
            )
    return scores
