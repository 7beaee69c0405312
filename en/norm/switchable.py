"""Switchable normalization (Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.combined import MIN_PIXELS, CombinedNormalizer


class SwitchableNorm2d(CombinedNormalizer):
    """Switchable normalization: every layer learns one mixture of statistics for all samples.

    Y = weight * (X - sum_k w_k mu_k) / sqrt(sum_k w'_k var_k + eps) + bias, with w = softmax(mean_weight) and
    w' = softmax(var_weight). Moments over (N, H, W) for bn (running averages in evaluation), (H, W) for in, (C, H, W)
    for ln, (C/G, H, W) for gn, all biased: the original code's unbiased ones are NaN at 1 x 1 pixels.

    Args:
        num_features: C.
        normalizers: any of bn, in, ln, gn, in the order of the ratios (K of them).
        groups: groups of gn; None for gcd(32, C).
        eps, momentum, sync: as for batch normalization.
        min_pixels: H * W of the maps of training from which on `in` takes part; with smaller ones its ratios are 0,
            unless it is alone. 1 is the paper's form; the default is our choice (docs/small_maps.md).
        start: the normalizer that the ratios begin on: bn for a network that has been trained with it. None: all alike.
        device, dtype: of parameters and buffers.
    Parameters: `weight`, `bias` (C,); `mean_weight`, `var_weight` (K,), starting at one, and at HEAD_START more for
    `start`.
    """

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str] = ("bn", "in", "ln"),
        groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        min_pixels: int = MIN_PIXELS,
        start: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, normalizers, groups, eps, momentum, sync, min_pixels, start, device, dtype)
        self.add_affine(device=device, dtype=dtype)
        logits = 1 + self.first_logits()
        self.mean_weight = nn.Parameter(logits.to(device=device, dtype=dtype, copy=True))
        self.var_weight = nn.Parameter(logits.to(device=device, dtype=dtype, copy=True))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for logits in (self.mean_weight, self.var_weight):
                logits.copy_(1 + self.first_logits())

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        offsets, variances = self.statistics(mean, var, pixels)
        shape, deciding = offsets.shape[:2], self.deciding_for(mean, pixels)
        mean_ratios, var_ratios = (
            torch.softmax(self.admitted(logits.to(mean.dtype), deciding), dim=0).expand(shape)
            for logits in (self.mean_weight, self.var_weight)
        )
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        return statistics.mix_statistics(mean_ratios, var_ratios, offsets, variances, weight, bias, self.added_eps)

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        parameters = (self.weight, self.bias, self.mean_weight, self.var_weight)
        return self.plan_with(self.known_pixels() or pixels, parameters, "static", mix_statistics=True)
