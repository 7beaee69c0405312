"""The single normalizers bn, in, ln and gn, with one signature and one meaning of affine."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.arguments import check_groups
from en.norm.base import Normalizer, RunningNormalizer, refuse_vmap


class BatchNorm2d(RunningNormalizer):
    """Batch normalization: moments over (N, H, W) per channel; running averages in evaluation.

    Y = weight * (X - mu) / sqrt(var + eps) + bias, weight and bias (C,). Equal to nn.BatchNorm2d, and computed by the
    same library kernel unless `sync` is on. With `sync` the moments are those of all ranks, on gloo as well as on NCCL.
    """

    macs_per_element = 1
    affine = True  # type: ignore[assignment] # it may become another library's batch normalization, and compute the same

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, sync, device=device, dtype=dtype)
        self.add_affine(device=device, dtype=dtype)

    def normalized(self, x: Tensor) -> Tensor:
        if self.training and (self.synced or self.momentum is None or torch_refuses(x)):
            return super().normalized(x)
        if self.training and self.tracks:
            refuse_vmap(x)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        mean, var = (self.averages if self.tracks or not self.training else None) or (None, None)
        momentum = 0.0 if self.momentum is None else self.momentum
        batch = self.training or mean is None
        return F.batch_norm(x, mean, var, self.weight, self.bias, batch, momentum, self.eps)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        batch_mean, batch_var = self.batch_moments(mean, var, pixels)
        return affine(self.weight, self.bias, mean, batch_mean, batch_var, self.eps)


class InstanceNorm2d(Normalizer):
    """Instance normalization: moments over (H, W) per sample and channel, in training and in evaluation.

    Y = weight * (X - mu) / sqrt(var + eps) + bias, weight and bias (C,): nn.InstanceNorm2d with affine=True, and `bias`
    instead of an error at 1 x 1 pixels.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(num_features, eps)
        self.add_affine(device=device, dtype=dtype)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        return affine(self.weight, self.bias, mean, mean, var, self.eps)

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        return single_plan("in", 1, self.weight, self.bias, self.eps)


class GroupNorm2d(Normalizer):
    """Group normalization: moments over (C/G, H, W) per sample and group, in training and in evaluation.

    Y = weight * (X - mu) / sqrt(var + eps) + bias, weight and bias (C,).

    Args:
        groups: G, a divisor of num_features; None for gcd(32, C) (our choice: ShuffleNetV2's widths miss 32).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        groups: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps)
        self.groups = check_groups(groups, num_features)
        self.add_affine(device=device, dtype=dtype)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        group_mean, group_var = statistics.group_moments(mean, var, self.groups)
        return affine(self.weight, self.bias, mean, group_mean, group_var, self.eps)

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        return single_plan("gn", self.groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class LayerNorm2d(GroupNorm2d):
    """Layer normalization: moments over (C, H, W) per sample, in training and in evaluation.

    Y = weight * (X - mu) / sqrt(var + eps) + bias, weight and bias (C,). This is GroupNorm(1, C), as in the SN and EN
    papers, not nn.LayerNorm, which normalizes trailing axes.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(num_features, eps, groups=1, device=device, dtype=dtype)

    native_plan = GroupNorm2d.native_plan


def torch_refuses(x: Tensor) -> bool:
    """Tells whether F.batch_norm would refuse x (N, C, H, W) in training: one value a channel or none, or traced."""
    return statistics.is_tracing() or x.shape[0] * x.shape[2] * x.shape[3] <= 1


def single_plan(name: str, groups: int, weight: Tensor, bias: Tensor, eps: float) -> kernels.NativePlan:
    """One normalizer, whose ratio is 1."""
    parameters = (weight, bias, weight.new_zeros(1))
    return kernels.NativePlan((name,), groups, eps, parameters, "static", mix_statistics=True)


def affine(
    weight: Tensor, bias: Tensor, centre: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of weight * (X - mean) / sqrt(var + eps) + bias for an X centred at `centre`, all (N or 1, C)."""
    scale = weight * torch.rsqrt(var + eps)
    return scale, torch.addcmul(bias.to(scale.dtype), scale, centre - mean)
