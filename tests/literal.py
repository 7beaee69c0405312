"""The normalizers written out literally, term by term from the formulas: the oracle for the closed form."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from en.norm import ExemplarNorm2d, SparseSwitchableNorm2d, SwitchableNorm2d

AXES = {"bn": (0, 2, 3), "in": (2, 3), "ln": (1, 2, 3)}


def literal_moments(name: str, x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of one normalizer, expanded to x's shape."""
    n, c, h, w = x.shape
    if name == "bn" and not layer.training:
        return layer.running_mean.view(1, c, 1, 1).expand_as(x), layer.running_var.view(1, c, 1, 1).expand_as(x)
    if name == "gn":
        groups = getattr(layer, "groups", math.gcd(32, c))
        grouped = x.reshape(n, groups, c // groups, h, w)
        mean = grouped.mean((2, 3, 4), keepdim=True)
        var = ((grouped - mean) ** 2).mean((2, 3, 4), keepdim=True)
        return mean.expand_as(grouped).reshape(x.shape), var.expand_as(grouped).reshape(x.shape)
    mean = x.mean(AXES[name], keepdim=True)
    var = ((x - mean) ** 2).mean(AXES[name], keepdim=True)
    return mean.expand_as(x), var.expand_as(x)


def without_in(layer: ExemplarNorm2d | SwitchableNorm2d, logits: Tensor, x: Tensor) -> Tensor:
    """The logits (K,), that of `in` -inf where maps have fewer than min_pixels pixels and there are others."""
    small = x.shape[2] * x.shape[3] < layer.min_pixels and len(logits) > 1
    names = layer.normalizers
    return torch.stack([logits[i] - math.inf if small and name == "in" else logits[i] for i, name in enumerate(names)])


def literal_gate(layer: ExemplarNorm2d, inputs: Tensor, x: Tensor) -> Tensor:
    """Logits (K,) of one sample's inputs: FC2(s * activation(FC1(inputs)))."""
    (first, first_bias), (last, last_bias) = ((part.weight, part.bias) for part in (layer.gate[0], layer.gate[2]))
    before = (first * inputs).sum(1) + first_bias
    hidden = torch.where(before > 0, before, 0) if layer.activation == "relu" else torch.tanh(before)
    if x.shape[2] * x.shape[3] < layer.gate_pixels:
        hidden = hidden / math.sqrt(len(hidden))
    return (last * hidden).sum(1) + last_bias


def literal_ratios(layer: ExemplarNorm2d, x: Tensor) -> Tensor:
    """lambda (N, K) by the six steps, one sample and one normalizer at a time."""
    k = len(layer.normalizers)
    if layer.ratio_source == "static":
        return torch.softmax(without_in(layer, layer.ratio_logits, x), 0).expand(len(x), k)
    pooled = x.mean((2, 3))
    if layer.ratio_source == "pooled":
        logits = [literal_gate(layer, row, x) for row in pooled]
        return torch.stack([torch.softmax(without_in(layer, row, x), 0) for row in logits])
    rows = []
    for name in layer.normalizers:
        mean, var = literal_moments(name, x, layer)
        xhat = (pooled - mean[:, :, 0, 0]) / torch.sqrt(var[:, :, 0, 0] + layer.eps)
        rows.append(layer.reduce(xhat[:, :, None])[:, :, 0] if layer.convolution else xhat)
    ratios = []
    for n in range(len(x)):
        z = torch.stack([row[n] for row in rows])
        v = z @ z.T
        if layer.ratio_source == "relative":
            v = v / (torch.trace(v) + layer.eps)
        ratios.append(torch.softmax(without_in(layer, literal_gate(layer, v.flatten(), x), x), 0))
    return torch.stack(ratios)


def literal_exemplar(layer: ExemplarNorm2d, x: Tensor) -> Tensor:
    ratios = literal_ratios(layer, x)[:, :, None, None, None]
    stats = [literal_moments(name, x, layer) for name in layer.normalizers]
    column = (1, -1, 1, 1)
    if layer.mix == "statistics":
        mean = sum(ratios[:, i] * m for i, (m, _) in enumerate(stats))
        var = sum(ratios[:, i] * v for i, (_, v) in enumerate(stats))
        return layer.weight.view(column) * (x - mean) / torch.sqrt(var + layer.eps) + layer.bias.view(column)
    y = torch.zeros_like(x)
    for i, (mean, var) in enumerate(stats):
        gamma = layer.weight_rows[0 if layer.shared_affine else i].view(column)
        y = y + gamma * ratios[:, i] * (x - mean) / torch.sqrt(var + layer.eps)
        if not layer.shared_affine:
            y = y + layer.bias_rows[i].view(column)
    return y + layer.bias.view(column) if layer.shared_affine else y


def literal_sparsest(weights: Tensor, radius: float) -> Tensor:
    """The ratios at least `radius` from equal ones that are nearest to the weights: the best of each face's best."""
    k, dtype, weights = len(weights), weights.dtype, weights.double()
    candidates = []
    for size in range(1, k + 1):
        for chosen in map(list, itertools.combinations(range(k), size)):
            face = torch.zeros(k, dtype=weights.dtype).index_fill(0, torch.tensor(chosen), 1)
            point = face * (weights - ((face * weights).sum() - 1) / size)
            away, room = point - face / size, radius**2 - (1 / size - 1 / k)
            if size > 1 and away.square().sum() < room and away.any():
                point = face / size + away / away.norm() * room**0.5
            if (point >= 0).all():
                candidates.append(point)
    far = [p for p in candidates if (p - 1 / k).square().sum() >= radius**2 - 1e-9 or p.max() > 1 - 1e-9]
    return min(far or candidates, key=lambda point: (point - weights).square().sum().item()).to(dtype)


def literal_sparse_switchable(layer: SparseSwitchableNorm2d, x: Tensor) -> Tensor:
    stats = [literal_moments(name, x, layer) for name in layer.normalizers]
    radius = min(1.0, layer.trained_batches.item() / layer.steps)
    mean = sum(w * m for w, (m, _) in zip(literal_sparsest(layer.mean_weight, radius), stats, strict=True))
    var = sum(w * v for w, (_, v) in zip(literal_sparsest(layer.var_weight, radius), stats, strict=True))
    column = (1, -1, 1, 1)
    return layer.weight.view(column) * (x - mean) / torch.sqrt(var + layer.eps) + layer.bias.view(column)


def literal_switchable(layer: SwitchableNorm2d, x: Tensor) -> Tensor:
    stats = [literal_moments(name, x, layer) for name in layer.normalizers]
    mean_ratios = torch.softmax(without_in(layer, layer.mean_weight, x), 0)
    var_ratios = torch.softmax(without_in(layer, layer.var_weight, x), 0)
    mean = sum(w * m for w, (m, _) in zip(mean_ratios, stats, strict=True))
    var = sum(w * v for w, (_, v) in zip(var_ratios, stats, strict=True))
    column = (1, -1, 1, 1)
    return layer.weight.view(column) * (x - mean) / torch.sqrt(var + layer.eps) + layer.bias.view(column)


def literal_single(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    mean, var = literal_moments(name, x, layer)
    column = (1, -1, 1, 1)
    return layer.weight.view(column) * (x - mean) / torch.sqrt(var + layer.eps) + layer.bias.view(column)


FORMULAS: dict[str, Callable[[str, Any, Tensor], Tensor]] = {
    "en": lambda name, layer, x: literal_exemplar(layer, x),
    "sn": lambda name, layer, x: literal_switchable(layer, x),
    "ssn": lambda name, layer, x: literal_sparse_switchable(layer, x),
    **dict.fromkeys(("bn", "in", "ln", "gn"), literal_single),
}


def literal_forward(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    """Computes by its formula what the registered normalizer `name` gives for x; leaves running buffers alone."""
    return FORMULAS[name](name, layer, x)
