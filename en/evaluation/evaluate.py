"""A task's metrics, exact over all ranks."""

import math

import torch
from torch import nn
from torchmetrics import SumMetric

from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.errors import RunError
from en.evaluation.examples import Examples
from en.progress import Progress
from en.runs.scores import Scores
from en.size import Size
from en.tasks import Task


@torch.inference_mode()
def evaluate(
    task: Task,
    model: nn.Module,
    loader: ImageLoader,
    size: Size | None,
    to_device: ToDevice,
    visible: bool,
    examples: Examples | None = None,
) -> Scores:
    """The task's metrics of the bare model over every image of a set, the same on all ranks.

    The model has to be the same on all ranks (see average_buffers). Each takes its part of the images; sums are
    added up.

    Args:
        examples: what is to see the predictions of this rank besides; None: nothing.
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
            predicted = task.predict(model, images)
            metrics.update(predicted, targets)
            if examples is not None:
                examples.see(batch, predicted)
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
