"""What each branch of a normalizer does to its input and to the gradient that comes back through it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from en.norm import ExemplarNorm2d, Normalizer, SwitchableNorm2d, statistics
from en.norm.base import per_channel

WHOLE = "all"
NEAR_CONSTANT = 1e-5  # variance over (H, W) below which a cell is near-constant: the default eps
FLAT = 1e-3  # the same, relative to the sample's variance over (C, H, W)


@dataclass(frozen=True)
class Gain:
    """A branch of a normalizer, or the whole of it, on one batch.

    Attributes:
        branch: bn, in, ln, gn; `all` for the whole layer.
        pixels: H * W.
        near_constant: share of the cells (n, c) with a variance under NEAR_CONSTANT, 0 to 1.
        flat: share of the cells with a variance under FLAT times their sample's over (C, H, W).
        ratio: the branch's mean ratio over the samples; of SN, the variances' ratio; 1 for `all`.
        forward: root mean square of the branch's output, shift left out, over that of X less its channels' means.
        backward: norm of the gradient with respect to X through this branch alone, ratios fixed, over that of dY.
        largest: the largest scale of a cell.
    """

    branch: str
    pixels: int
    near_constant: float
    flat: float
    ratio: float
    forward: float
    backward: float
    largest: float


def gains_of(layer: Normalizer, x: Tensor, dy: Tensor) -> Iterator[Gain]:
    """The whole layer's gain, then those of its branches where their outputs are summed, as EN's are.

    Args:
        layer: in training mode; it is left as it is.
        x, dy: (N, C, H, W), its input and the gradient of its output.
    """
    layer, pixels = copy.deepcopy(layer), x.shape[2] * x.shape[3]
    x = x.detach().requires_grad_()
    mean, var, centred = statistics.instance_moments(x)
    with torch.no_grad():
        sample = statistics.pool(mean, var, dim=1)[1]
        cells = float((var < NEAR_CONSTANT).float().mean()), float((var < FLAT * sample).float().mean())
        spread = (x - x.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    for branch, ratio, scale, shift in branches(layer, mean, var, pixels):
        y = centred * per_channel(scale) + per_channel(shift)
        dx = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        with torch.no_grad():
            forward, backward, largest = y.square().mean().sqrt() / spread, dx.norm() / dy.norm(), scale.abs().max()
        yield Gain(branch, pixels, *cells, ratio, float(forward), float(backward), float(largest))


def branches(layer: Normalizer, mean: Tensor, var: Tensor, pixels: int) -> Iterator[tuple[str, float, Tensor, Tensor]]:
    """Name, mean ratio, scale and shift (N, C) of the whole layer and of its branches, biases left out."""
    scale, shift = layer.coefficients(mean, var, pixels)
    rows = layer.get_parameter("bias").detach().view(-1, mean.shape[1])
    yield WHOLE, 1.0, scale, shift - rows.sum(0)
    if isinstance(layer, SwitchableNorm2d):
        # Its branches share one map: what can be told apart is how much of each goes into the variance.
        ratios = torch.softmax(layer.var_weight, 0)
        for name, ratio in zip(layer.normalizers, ratios.tolist(), strict=True):
            yield name, ratio, scale * ratio, (shift - rows.sum(0)) * ratio
    if isinstance(layer, ExemplarNorm2d) and layer.mix == "outputs":
        offsets, variances = layer.statistics(mean, var, pixels)
        ratios = layer.ratios(mean, offsets, variances, pixels).detach()
        weight = layer.weight_rows.expand(len(layer.normalizers), -1)
        scales = weight * ratios[..., None] * torch.rsqrt(variances + layer.eps)
        for k, name in enumerate(layer.normalizers):
            yield name, float(ratios[:, k].mean()), scales[:, k], scales[:, k] * offsets[:, k]
