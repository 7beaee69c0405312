"""What all normalizers share: moments in one pass, a small part of their own, an affine map per sample and channel."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from en.norm import kernels, statistics
from en.norm.arguments import check_groups, check_input, check_normalizers, flag, is_number, positive, whole
from en.norm.statistics import full_precision, moments_dtype


class Normalizer(nn.Module):
    """Normalizes (N, C, H, W) with statistics that follow from the moments of each sample's channel.

    Y[n, c] = scale[n, c] * (X[n, c] - mean[n, c]) + shift[n, c], where mean is taken over (H, W) and a subclass
    computes scale and shift, (N, C) or broadcastable to it, in `coefficients`. Centring before scaling keeps a huge
    mean with a small spread accurate. Moments and coefficients are float32 (float64 for float64 input) whatever
    autocast says; the output has the input's dtype and memory format.

    Args:
        num_features: C.
        eps: added to every variance, > 0.
    Raises: ValueError for a bad argument, and in `forward` for an input that is not (N, C, H, W).
    """

    weight_decayed: ClassVar[frozenset[str]] = frozenset()
    """Names of the class's own parameters that take weight decay by default: none (our choice)."""

    macs_per_element: ClassVar[int] = 3
    """Multiply-accumulates for each value of the input in evaluation: two for its moments, one for the affine map."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = whole("num_features", num_features)
        self.eps = positive("eps", eps)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """Scale and shift from the statistics.

        Args:
            mean, var: (N, C), the input's mean and biased variance over (H, W).
            pixels: H * W.
        """
        raise TypeError(f"{type(self).__name__} has to define coefficients()")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), same dtype and memory format."""
        check_input(x, self.num_features)
        return kernels.normalize(self, x)

    def plain(self, x: Tensor) -> Tensor:
        """What `forward` computes, in torch's differentiable operations: the form to test the others against."""
        with full_precision(x.device.type):
            mean, var, centred = statistics.instance_moments(x.to(moments_dtype(x.dtype)))
            scale, shift = self.coefficients(mean, var, x.shape[2] * x.shape[3])
            return torch.addcmul(per_channel(shift), centred, per_channel(scale)).to(x.dtype)

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        """What `coefficients` computes for maps of so many pixels, for C++ and Triton; None for what those cannot do.

        Subclasses inherit none.
        """
        return None

    def observe(self, ratios: Tensor) -> None:
        """Called with the ratios (N, K) of every forward pass, detached."""

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class RunningNormalizer(Normalizer):
    """A normalizer that may use batch moments in training and, in evaluation, their running averages.

    Args:
        momentum: share of the batch's moments taken into the running averages, 0 to 1; None averages all batches alike.
        sync: batch moments over all ranks of the process group (where there is one) instead of this rank's.
        running: whether batch statistics are used at all; without them there are no buffers.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        running: bool = True,
    ) -> None:
        super().__init__(num_features, eps)
        if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum={momentum!r}: expected a number from 0 to 1, or None for a plain average")
        self.momentum = momentum
        self.sync = flag("sync", sync)
        if running:
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def reset_running_stats(self) -> None:
        """Forgets all batches seen: mean 0, variance 1, none counted."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    @property
    def synced(self) -> bool:
        """Whether batch moments are those of all ranks, now."""
        return self.sync and self.training and dist.is_available() and dist.is_initialized()

    def batch_moments(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """The batch's mean and biased variance, (1, C), in training; the running averages in evaluation."""
        if not self.training:
            return self.running_mean.to(mean.dtype)[None], self.running_var.to(var.dtype)[None]
        if self.synced:
            batch_mean, batch_var, count = statistics.synced_batch_moments(mean, var, pixels)
            self.track(batch_mean.detach()[0], batch_var.detach()[0], count)
        else:
            batch_mean, batch_var = statistics.pool(mean, var, dim=0)
            self.track(batch_mean.detach()[0], batch_var.detach()[0], mean.shape[0] * pixels)
        return batch_mean, batch_var

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Takes a batch's mean and biased variance, (C,), of `count` values each, into the running averages."""
        refuse_vmap(mean)
        unbiased = count / (count - 1).clamp(min=1) if isinstance(count, Tensor) else count / max(count - 1, 1)
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * unbiased).to(self.running_var.dtype), share)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}, sync={self.sync}"


MIN_PIXELS = 65  # of a map on which `in` takes part, by default


class CombinedNormalizer(RunningNormalizer):
    """A normalizer that combines several kinds of statistics.

    Args:
        normalizers: any of bn, in, ln, gn, each once, in the order of the ratios (K of them).
        groups: groups of gn; None for gcd(32, C).
        min_pixels: H * W from which on `in` takes part; on smaller maps its ratio is 0, unless it is alone.
    """

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str],
        groups: int | None,
        eps: float,
        momentum: float | None,
        sync: bool,
        min_pixels: int,
    ) -> None:
        self_normalizers = check_normalizers(normalizers)
        super().__init__(num_features, eps, momentum, sync, running="bn" in self_normalizers)
        self.normalizers = self_normalizers
        self.groups = check_groups(groups, num_features)
        self.min_pixels = whole("min_pixels", min_pixels)

    def statistics(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """Of every normalizer, mean - mu_k and the biased variance: two tensors (N, K, C)."""
        batch = self.batch_moments(mean, var, pixels) if "bn" in self.normalizers else None
        return statistics.statistics(mean, var, self.normalizers, self.groups, batch)

    def admitted(self, logits: Tensor, pixels: int | torch.SymInt) -> Tensor:
        """The logits of the ratios (K,), with that of `in` -inf where maps of so many pixels are too small for it."""
        if len(self.normalizers) == 1 or "in" not in self.normalizers or self.min_pixels == 1:
            return logits
        if isinstance(pixels, int) and pixels >= self.min_pixels:
            return logits
        absent = torch.arange(len(self.normalizers), device=logits.device) == self.normalizers.index("in")
        if isinstance(pixels, int):
            return logits.masked_fill(absent, -torch.inf)
        # A size that a compiled or exported graph leaves open.
        return logits.masked_fill(absent & (logits.new_full((), pixels) < self.min_pixels), -torch.inf)

    def plan_with(
        self,
        parameters: tuple[Tensor, ...],
        ratios: str,
        mix_statistics: bool,
        activation: str = "tanh",
        reduced: int = 1,
    ) -> kernels.NativePlan | None:
        """A native plan with this layer's statistics; None where they are of all ranks. Arguments as for NativePlan."""
        if self.synced:
            return None
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked) if "bn" in self.normalizers else None
        return kernels.NativePlan(
            normalizers=self.normalizers,
            groups=self.groups,
            eps=self.eps,
            parameters=parameters,
            ratios=ratios,
            mix_statistics=mix_statistics,
            training=self.training,
            running=buffers,
            momentum=self.momentum,
            activation=activation,
            reduced=reduced,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, normalizers={self.normalizers}, min_pixels={self.min_pixels}"


def refuse_vmap(values: Tensor) -> None:
    """Raises RuntimeError where vmap stands for many batches, which one running average cannot follow."""
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(values):
        raise RuntimeError("running averages cannot be taken under vmap: expected evaluation mode, layer.eval()")


def per_channel(values: Tensor) -> Tensor:
    """(N, C) or (1, C) -> (N, C, 1, 1), to broadcast over (N, C, H, W)."""
    return values[..., None, None]
