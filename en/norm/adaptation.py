"""Statistics at test time: batch normalization by what the network is shown, wherever it stands."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from en.norm.base import SINGLE_VALUE_CURE
from en.norm.statistics import full_precision, instance_moments, moments_dtype


@dataclass(frozen=True)
class Moments:
    """Moments of each channel of some values, float64.

    Attributes:
        count: of the values of a channel, ().
        mean: (C,).
        squares: (C,), the sum of squared deviations from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Those of a batch (N, C, ...), whose cells are averaged as a normalizer does, and pooled in float64."""
        with full_precision(x.device.type):
            cells = x if x.ndim == 4 else x.reshape(x.shape[0], x.shape[1], -1, 1)
            mean, var, _ = instance_moments(cells.to(moments_dtype(x.dtype)))
        pixels = cells.shape[2] * cells.shape[3]
        mean, var = mean.double(), var.double()
        pooled = mean.mean(0)
        squares = (var.sum(0) + (mean - pooled).square().sum(0)) * pixels
        return cls(pooled.new_full((), x.shape[0] * pixels), pooled, squares)

    def with_more(self, other: "Moments") -> "Moments":
        """Those of both together: variance within either, and between their means (Chan et al., 1979)."""
        count = self.count + other.count
        share, difference = other.count / count, other.mean - self.mean
        squares = self.squares + other.squares + difference.square() * self.count * share
        return Moments(count, self.mean + share * difference, squares)

    @property
    def var(self) -> Tensor:
        """The biased variance (C,), by which batches are normalized in training."""
        return self.squares / self.count


def averaging_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers of a network that normalize by running averages in evaluation, bn, sn, en and torch's own, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    }


@contextmanager
def keeping_averages(model: nn.Module) -> Iterator[None]:
    """Puts all running averages back as they were, after `with`."""
    layers = averaging_layers(model).values()
    before = [(layer, copies(layer)) for layer in layers]
    try:
        yield
    finally:
        for layer, averages in before:
            set_averages(layer, *averages)


@contextmanager
def batch_statistics(
    model: nn.Module, prior: int = 0, watch: Callable[[str, Moments], None] | None = None
) -> Iterator[None]:
    """Has a network in evaluation mode normalize each batch by the batch's own statistics, inside `with`.

    Every layer that has running averages takes, of what it is given, mean and biased variance in their place, as in
    training, whatever normalizer it is: en's ratios then follow from those and from the sample's own. With a prior,
    both are mixed with the running averages, which count like so many samples: N / (N + n) of the averages and
    n / (N + n) of the batch's for a batch of n (Schneider et al., Improving robustness against common corruptions by
    covariate shift adaptation, 2020). Each process takes its own batches, `sync` or not. The averages are afterwards as
    before.

    Args:
        prior: N, >= 0.
        watch: called with the name of each layer and the batch's moments.
    Raises: ValueError for one value per channel without a prior; a layer that pools maps for its branch keeps its
        averages instead, as in training.
    """
    with keeping_averages(model):
        handles = [
            layer.register_forward_pre_hook(partial(take_batch, name, copies(layer), prior, watch))
            for name, layer in averaging_layers(model).items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def take_batch(
    name: str,
    trained: tuple[Tensor, Tensor],
    prior: int,
    watch: Callable[[str, Moments], None] | None,
    layer: _BatchNorm,
    inputs: tuple[Any, ...],
) -> None:
    """Puts a batch's statistics, mixed with the trained ones, in the place of a layer's running averages."""
    x = inputs[0]
    if x.numel() == 0:
        return
    if x.numel() == x.shape[1] and not prior:
        if getattr(layer, "averages_for_one", False):
            set_averages(layer, *trained)
            return
        raise ValueError(
            f"{name} of {x.shape[1]} channels: expected more than one value per channel for statistics of the batch: "
            f"{SINGLE_VALUE_CURE}"
        )
    moments = Moments.of(x)
    if watch is not None:
        watch(name, moments)
    share = len(x) / (prior + len(x))
    pairs = zip(trained, (moments.mean, moments.var), strict=True)
    mean, var = (torch.lerp(before.double(), found, share) for before, found in pairs)
    set_averages(layer, mean, var)


def replace_averages(model: nn.Module, moments: Mapping[str, Moments]) -> None:
    """Puts moments in the place of the running averages of the layers of these names, the variance biased."""
    layers = averaging_layers(model)
    for name, found in moments.items():
        set_averages(layers[name], found.mean, found.var)


def buffers(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


def copies(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, var = buffers(layer)
    return mean.clone(), var.clone()


@torch.no_grad()
def set_averages(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    for buffer, value in zip(buffers(layer), (mean, var), strict=True):
        buffer.copy_(value)
