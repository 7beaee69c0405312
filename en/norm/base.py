"""What all normalizers share: moments in one pass, a small part of their own, an affine map per sample and channel."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from en.norm import kernels, statistics
from en.norm.arguments import check_groups, check_input, check_normalizers, flag, is_number, positive, whole
from en.norm.statistics import full_precision, is_tracing, moments_dtype


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
        """(N, C, H, W) -> (N, C, H, W), same dtype and memory format; one node of a graph of torch.fx."""
        if is_symbolic(x):
            return leaf_of_graph(self, x)  # type: ignore[no-any-return]
        if not is_tracing():
            check_input(x, self.num_features)
        return self.normalized(x)

    def normalized(self, x: Tensor) -> Tensor:
        """What `forward` computes of an input that it has checked."""
        return kernels.normalize(self, x)

    def plain(self, x: Tensor) -> Tensor:
        """What `forward` computes, in torch's differentiable operations: the form to test the others against."""
        with full_precision(x.device.type):
            mean, var, centred = statistics.instance_moments(x.to(moments_dtype(x.dtype)))
            scale, shift = self.coefficients(mean, var, x.shape[2] * x.shape[3])
            return torch.addcmul(per_channel(shift), centred, per_channel(scale)).to(x.dtype)

    def native_plan(self) -> kernels.NativePlan | None:
        """What `coefficients` computes, for C++ and Triton; None for what those cannot do. Subclasses inherit none."""
        return None

    def remembered(self) -> Mapping[str, Tensor]:
        """Copies of the buffers that `coefficients` reads in training and a forward pass changes: none."""
        return {}

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
        """The batch's mean and biased variance, (1, C); the running averages in evaluation and for an empty batch."""
        if not self.training or (not self.synced and statistics.is_empty(mean, pixels)):
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
        """Takes a batch's mean and biased variance, (C,), of `count` values each, into the running averages.

        A tensor may count none, which leaves the averages as they are.
        """
        refuse_vmap(mean)
        unbiased = count / (count - 1).clamp(min=1) if isinstance(count, Tensor) else count / max(count - 1, 1)
        taken = count > 0 if isinstance(count, Tensor) else 1
        self.num_batches_tracked.add_(taken)
        share = taken / self.num_batches_tracked.clamp(min=1) if self.momentum is None else taken * self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * unbiased).to(self.running_var.dtype), share)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}, sync={self.sync}"


class MixtureEps(float):
    """eps of a mixture: a number, but not one to take the root of a variance with.

    Whoever folds batch normalization into the convolution before it looks at no class: torch.nn.utils.fusion and timm's
    networks read running_mean, running_var, eps, weight and bias of what they are given. A mixture is no affine map in
    evaluation, and has all five.
    """

    @classmethod
    def __torch_function__(cls, *_: object, **__: object) -> None:
        raise ValueError("a mixture of normalizers cannot be folded into a convolution: expected batch normalization")


class CombinedNormalizer(RunningNormalizer):
    """A normalizer that combines several kinds of statistics.

    Args:
        normalizers: any of bn, in, ln, gn, each once, in the order of the ratios (K of them).
        groups: groups of gn; None for gcd(32, C).
    """

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str],
        groups: int | None,
        eps: float,
        momentum: float | None,
        sync: bool,
    ) -> None:
        self_normalizers = check_normalizers(normalizers)
        super().__init__(num_features, eps, momentum, sync, running="bn" in self_normalizers)
        self.normalizers = self_normalizers
        self.groups = check_groups(groups, num_features)

    @property
    def eps(self) -> float:
        """Added to every variance, for readers; in formulas it is `added_eps`."""
        return MixtureEps(self.added_eps)

    @eps.setter
    def eps(self, value: float) -> None:
        self.added_eps = float(value)

    def statistics(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """Of every normalizer, mean - mu_k and the biased variance: two tensors (N, K, C)."""
        batch = self.batch_moments(mean, var, pixels) if "bn" in self.normalizers else None
        return statistics.statistics(mean, var, self.normalizers, self.groups, batch)

    def plan_with(
        self,
        parameters: tuple[Tensor, ...],
        ratios: str,
        mix_statistics: bool,
        activation: str = "tanh",
        reduced: int = 1,
        origins: tuple[Tensor, ...] = (),
        normalizers: tuple[str, ...] | None = None,
    ) -> kernels.NativePlan | None:
        """A native plan with this layer's statistics; None where they are of all ranks. Arguments as for NativePlan."""
        if self.synced:
            return None
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked) if "bn" in self.normalizers else None
        return kernels.NativePlan(
            normalizers=self.normalizers if normalizers is None else normalizers,
            groups=self.groups,
            eps=self.added_eps,
            parameters=parameters,
            ratios=ratios,
            mix_statistics=mix_statistics,
            training=self.training,
            running=buffers,
            momentum=self.momentum,
            activation=activation,
            reduced=reduced,
            origins=origins,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, normalizers={self.normalizers}"


def is_symbolic(x: object) -> bool:
    """Whether `x` stands for a value in a graph that torch.fx records."""
    return isinstance(x, fx.Proxy)


def leaf_of_graph(layer: nn.Module, x: Any) -> Any:
    """The layer called as one node of a graph of torch.fx, as the tracer does by itself with torch's own layers."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), (x,), {})


def refuse_vmap(values: Tensor) -> None:
    """Raises RuntimeError where vmap stands for many batches, which one running average cannot follow."""
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(values):
        raise RuntimeError("running averages cannot be taken under vmap: expected evaluation mode, layer.eval()")


def per_channel(values: Tensor) -> Tensor:
    """(N, C) or (1, C) -> (N, C, 1, 1), to broadcast over (N, C, H, W)."""
    return values[..., None, None]
