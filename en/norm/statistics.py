"""Means and variances of every normalizer from one pass over the input.

All of them follow from the moments of each sample's channel (exemplar_normalization, "what makes it fast"):
with m, s = mean and biased variance of X over (H, W), shape (N, C), a set of (n, c) cells pools to
mean(m) and mean(s + (m - mean(m))^2), because every cell holds the same number of pixels.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

NAMES = ("bn", "in", "ln", "gn")


def moments_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which moments and coefficients are computed: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(device_type: str) -> AbstractContextManager[None]:
    """Switches autocast off, so that moments and coefficients keep their type; the meta device has none."""
    if device_type == "meta":
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def instance_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of (N, C, H, W) over (H, W), differentiable any number of times.

    torch.var_mean is Welford's algorithm in one pass on a GPU and under torch.compile. On a CPU in eager mode it is 7
    to 30 times slower than vectorized passes. There, the mean of float32 values around 1e4 is off by its rounding,
    which the mean of what is left after subtracting it puts right; that correction is zero in exact arithmetic, so no
    gradient flows through it.

    Returns: mean (N, C), biased variance (N, C), and x - mean (N, C, H, W). Finite at 1 x 1 (variance 0).
    """
    if torch.compiler.is_compiling() or x.is_cuda:
        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return mean[:, :, 0, 0], var[:, :, 0, 0], x - mean
    rounded = x.mean((2, 3), keepdim=True)
    centred = x - rounded
    correction = centred.detach().mean((2, 3), keepdim=True)
    centred = centred - correction
    return (rounded + correction)[:, :, 0, 0], centred.square().mean((2, 3)), centred


def pool(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Moments of the union of equally large cells along `dim`, which is kept with size 1."""
    pooled = mean.mean(dim, keepdim=True)
    return pooled, (var + (mean - pooled).square()).mean(dim, keepdim=True)


def is_tracing() -> bool:
    """Tells whether torch.jit.trace runs: sizes are then tensors, and what an `if` finds out is kept for all inputs."""
    return torch._C._is_tracing()


def is_empty(mean: Tensor, pixels: int) -> bool:
    """Tells whether cells (N, C) of so many pixels hold no value; a traced graph takes it that they do."""
    return not is_tracing() and mean.shape[0] * pixels == 0


def group_moments(mean: Tensor, var: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Moments over (C/G, H, W) for each sample and group, repeated over the group's channels: two tensors (N, C)."""
    shape = (mean.shape[0], groups, mean.shape[1] // groups)
    pooled = pool(mean.view(shape), var.view(shape), dim=2)
    return pooled[0].expand(shape).reshape(mean.shape), pooled[1].expand(shape).reshape(mean.shape)


def default_groups(num_features: int) -> int:
    """Groups of gn when none are given: gcd(32, C), because 32 does not divide ShuffleNetV2's widths (our choice)."""
    return math.gcd(32, num_features)


def statistics(
    mean: Tensor, var: Tensor, normalizers: Sequence[str], groups: int, batch: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Every normalizer's offset, mean - mu_k, and variance.

    Args:
        mean, var: (N, C), moments of each cell.
        normalizers: K of bn, in, ln, gn.
        groups: groups of gn.
        batch: mean and variance of bn, (1, C).
    Returns: two tensors (N, K, C).
    """
    offsets, variances = [], []
    for name in normalizers:
        match name:
            case "bn":
                assert batch is not None
                offset, variance = mean - batch[0], batch[1].expand_as(var)
            case "in":
                offset, variance = torch.zeros_like(mean), var
            case _:
                group_mean, variance = group_moments(mean, var, groups if name == "gn" else 1)
                offset = mean - group_mean
        offsets.append(offset)
        variances.append(variance)
    return torch.stack(offsets, dim=1), torch.stack(variances, dim=1)


def correlations(z: Tensor, eps: float | None) -> Tensor:
    """v = z z^T (N, K, K) of z (N, K, G); with an eps, v / (trace(v) + eps)."""
    v = torch.bmm(z, z.transpose(1, 2))
    return v if eps is None else v / (z.square().sum((1, 2))[:, None, None] + eps)


def grouped_sums(offsets: Tensor, variances: Tensor, kernel: Tensor, groups: int, eps: float) -> Tensor:
    """z (N, K, G), the sums over the channels of each group of kernel * offset / sqrt(var + eps); kernel (C)."""
    xhat = offsets * torch.rsqrt(variances + eps)
    return (xhat * kernel).view(*xhat.shape[:2], groups, xhat.shape[2] // groups).sum(3)


def mix_outputs(
    ratios: Tensor, offsets: Tensor, variances: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift (N, C) of sum_k (weight_k * ratio_k * (X - mu_k) / sqrt(var_k + eps) + bias_k).

    Args:
        ratios: (N, K).
        weight, bias: (K, C), or (1, C) for one of each.
    """
    scales = weight * ratios[..., None] * torch.rsqrt(variances + eps)
    return scales.sum(1), (scales * offsets).sum(1) + bias.sum(0)


def mix_statistics(
    mean_ratios: Tensor,
    var_ratios: Tensor,
    offsets: Tensor,
    variances: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Scale and shift (N, C) of weight * (X - sum_k a_k mu_k) / sqrt(sum_k b_k var_k + eps) + bias.

    Args:
        mean_ratios, var_ratios: a and b, (N, K).
        weight, bias: (C,).
    """
    scale = weight * torch.rsqrt((var_ratios[..., None] * variances).sum(1) + eps)
    return scale, bias + scale * (mean_ratios[..., None] * offsets).sum(1)


def synced_batch_moments(
    mean: Tensor, var: Tensor, pixels: int, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch moments over all ranks of a process group, the default one for None, differentiable on every rank.

    Args:
        mean, var: (N, C) of this rank's samples; N may differ between ranks, and be 0.
        pixels: H * W of this rank's input.
    Returns: mean (1, C), biased variance (1, C), and the number of values each was taken over, a scalar tensor.
    """
    if is_empty(mean, pixels):  # zeros that still take part in the exchange of gradients
        local_mean, local_var = mean.sum(0, keepdim=True), var.sum(0, keepdim=True)
    else:
        local_mean, local_var = pool(mean, var, dim=0)
    count = torch.full((1, 1), float(mean.shape[0] * pixels), dtype=mean.dtype, device=mean.device)
    packed: Tensor = _GatherRanks.apply(torch.cat([local_mean, local_var, count], dim=1), group)
    channels = mean.shape[1]
    means, variances, counts = packed[:, :channels], packed[:, channels:-1], packed[:, -1:]
    total = counts.sum()
    share = counts / total.clamp(min=1)
    pooled = (share * means).sum(0, keepdim=True)
    return pooled, (share * (variances + (means - pooled).square())).sum(0, keepdim=True), total.detach()


class _GatherRanks(torch.autograd.Function):
    """(1, D) on every rank -> (ranks, D) on every rank; backward adds up what all ranks ask of one rank's row."""

    @staticmethod
    def forward(ctx: FunctionCtx, row: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        row = row.contiguous()
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
        dist.all_gather(rows, row, group)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        group: dist.ProcessGroup | None = ctx.group  # type: ignore[attr-defined]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=group)
        rank = dist.get_rank(group)
        return grad[rank : rank + 1], None
