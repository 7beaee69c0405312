"""Exact scores over all ranks, and running averages taken anew."""

import math
from itertools import islice

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from en.data import ImageLoader
from en.data.to_device import ToDevice
from en.distributed.ranks import average_buffers, sum_over_ranks
from en.errors import RunError
from en.norm import ExemplarNorm2d, RunningNormalizer
from en.progress import Progress
from en.tasks import Task


@torch.inference_mode()
def evaluate(
    task: Task, model: nn.Module, loader: ImageLoader, resolution: int, to_device: ToDevice, shown: bool
) -> dict[str, float]:
    """The task's metrics of the bare model over every image of a set, the same on all ranks.

    The model has to be the same on all ranks (see average_buffers). Each takes its share of the images; sums are added up.

    Raises: RunError when the images seen are not as many as the set has, and when a metric is not finite.
    """
    metrics = task.metrics(len(loader.classes)).to(to_device.device)
    metrics.set_dtype(torch.float64)
    seen = SumMetric().to(to_device.device)
    seen.set_dtype(torch.float64)
    was_training = model.training
    model.eval()
    with Progress("evaluating", loader.samples, shown) as progress:
        for batch in loader.eval_epoch(resolution):
            images, targets = to_device(batch.images, batch.targets)
            metrics.update(task.predict(model, images), targets)
            seen.update(torch.full((), len(images), device=to_device.device))
            progress.advance(len(images))
    model.train(was_training)
    if (images_seen := int(seen.compute())) != loader.samples:
        raise RunError(f"evaluation saw {images_seen} images, expected the {loader.samples} of the set")
    values = {name: round(float(value), 6) for name, value in metrics.compute().items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(f"the {name} is not finite in evaluation: {value} over the {loader.samples} images of the set")
    return values


def mean_ratios(model: nn.Module, record: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """The mean ratio of each normalizer in each EN layer of a record, over the samples of all ranks."""
    layers = {name: layer.normalizers for name, layer in model.named_modules() if isinstance(layer, ExemplarNorm2d)}
    if not layers:
        return {}
    device = next(model.parameters()).device
    sums = [record[name].double().sum(0) if name in record else torch.zeros(len(k)) for name, k in layers.items()]
    flat = sum_over_ranks(torch.cat([part.to(device, torch.float64) for part in sums]))
    shares = iter((flat / flat[: len(next(iter(layers.values())))].sum()).tolist())
    return {name: {kind: next(shares) for kind in kinds} for name, kinds in layers.items()}


@torch.no_grad()
def recalibrate(model: nn.Module, loader: ImageLoader, batches: int, resolution: int, to_device: ToDevice) -> None:
    """Replaces running averages by plain averages over training batches, everything else in evaluation mode.

    This is the "batch average" of the SN paper. A model without running averages is left as it is.

    Raises: RunError when an epoch has fewer batches.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, RunningNormalizer) and hasattr(layer, "running_mean")]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    seen = 0
    for batch in islice(loader.train_epoch(0, resolution), batches):
        model(to_device(batch.images, batch.targets)[0])
        seen += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    if seen < batches:
        raise RunError(f"recalibration over {batches} batches: expected at most the {seen} of an epoch")
    average_buffers(model)
