"""The small part of a mixed normalizer: from the moments of each cell to scale and shift, in tensors of (N, K, C) or less.

In torch's operations: what torch.compile is given, what runs on a GPU, and the reference for cpu/mixtures.hpp. Statistics are
kept as offsets, mean of the cell minus mean of the normalizer, which is all that scale and shift need of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from en.norm import moments


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
                group_mean, variance = moments.group_moments(mean, var, groups if name == "gn" else 1)
                offset = mean - group_mean
        offsets.append(offset)
        variances.append(variance)
    return torch.stack(offsets, dim=1), torch.stack(variances, dim=1)


def correlations(offsets: Tensor, variances: Tensor, kernel: Tensor, groups: int, eps: float) -> Tensor:
    """v = z z^T (N, K, K) with z[g] = sum over the channels of group g of kernel * offset / sqrt(var + eps); kernel (C)."""
    xhat = offsets * torch.rsqrt(variances + eps)
    z = (xhat * kernel).view(*xhat.shape[:2], groups, xhat.shape[2] // groups).sum(3)
    return torch.bmm(z, z.transpose(1, 2))


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
    mean_ratios: Tensor, var_ratios: Tensor, offsets: Tensor, variances: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift (N, C) of weight * (X - sum_k a_k mu_k) / sqrt(sum_k b_k var_k + eps) + bias.

    Args:
        mean_ratios, var_ratios: a and b, (N, K).
        weight, bias: (C,).
    """
    scale = weight * torch.rsqrt((var_ratios[..., None] * variances).sum(1) + eps)
    return scale, bias + scale * (mean_ratios[..., None] * offsets).sum(1)
