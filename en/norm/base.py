"""What all normalizers share: moments in one pass, a small part of their own, an affine map per sample and channel."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.arguments import check_input, flag, is_number, positive, whole
from en.norm.refusals import Unconvertible
from en.norm.statistics import full_precision, is_tracing, moments_dtype

SINGLE_VALUE_CURE = (
    "take more images in a (micro-)batch, larger ones, sync over several ranks, or a normalizer without bn there"
)

Self = TypeVar("Self", bound="Normalizer")


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

    frozen = False
    """Whether the layer stays in evaluation mode whatever mode is asked for: see freeze()."""

    learned: Sequence[str] = ()
    """Of a frozen layer, the parameters that learned before."""

    place: str = ""
    """Where replace_norm has put the layer into a network, for messages."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        nn.Module.__init__(self)  # of the bases, nn.BatchNorm2d would make parameters of its own
        self.num_features = whole("num_features", num_features)
        self.eps = positive("eps", eps)

    def add_affine(self, rows: int = 1, device: Device = None, dtype: torch.dtype | None = None) -> None:
        """Gives the layer `weight` and `bias`, (rows * C,), one and zero."""
        self.weight = nn.Parameter(torch.ones(rows * self.num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(rows * self.num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Makes the layer what its constructor made it: needed after torch's to_empty()."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def train(self: Self, mode: bool = True) -> Self:
        self.forget()
        return super().train(mode and not self.frozen)

    def forget(self) -> None:
        """Called at each change of mode: what was read of buffers may be out of date."""

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
        """Computes `forward` of an input that it has checked."""
        return kernels.normalize(self, x)

    def plain(self, x: Tensor) -> Tensor:
        """Computes `forward` in torch's differentiable operations: the form to test the others against."""
        with full_precision(x.device.type):
            mean, var, centred = statistics.instance_moments(x.to(moments_dtype(x.dtype)))
            scale, shift = self.coefficients(mean, var, x.shape[2] * x.shape[3])
            return torch.addcmul(per_channel(shift), centred, per_channel(scale)).to(x.dtype)

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        """What `coefficients` computes for maps of so many pixels, for C++ and Triton; None for what those cannot do.

        Subclasses inherit none.
        """
        return None

    def remembered(self) -> Mapping[str, Tensor]:
        """Copies of the buffers that `coefficients` reads in training and a forward pass changes: none."""
        return {}

    def see(self, x: Tensor) -> None:
        """Called with every input before anything is computed of it; not in graphs that are recorded."""

    @property
    def observed(self) -> bool:
        """Tells whether anybody wants the ratios; `observe` may be called where nobody does."""
        return type(self).observe is not Normalizer.observe

    def observe(self, ratios: Tensor) -> None:
        """Called with the ratios (N, K) of every forward pass, detached."""

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class RunningNormalizer(Normalizer, nn.BatchNorm2d):
    """A normalizer that may use batch moments in training and, in evaluation, their running averages.

    It is a nn.BatchNorm2d to whoever asks, so that what other libraries do to those happens to it too: averages taken
    anew (torch.optim.swa_utils.update_bn), evaluation mode while the rest trains, float32 under FSDP's mixed
    precision. Nothing is computed by that class. Conversions to another library's layer are refused: see `affine`.

    Args:
        momentum: share of the batch's moments taken into the running averages, 0 to 1; None averages all batches alike.
        sync: batch moments over all ranks of the process group (where there is one) instead of this rank's.
        running: whether batch statistics are used at all; without them the buffers are None.
        device, dtype: of parameters and buffers.
    """

    running_mean: Tensor | None  # None, too, where test-time adaptation took it away
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    process_group: dist.ProcessGroup | None = None
    """The ranks whose batches are taken together where `sync` is on; None for all: see convert_sync()."""
    averages_for_one = False
    """Has a batch of one value per channel, as of one image in a branch that pools all of it, normalized by the running
    averages, which it leaves as they are, instead of refused."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        running: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps)
        if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum={momentum!r}: expected a number from 0 to 1, or None for a plain average")
        self.momentum = momentum
        self.sync = flag("sync", sync)
        self.track_running_stats = self.of_batches = running
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_buffer("running_mean", zeros if running else None)
        self.register_buffer("running_var", torch.ones_like(zeros) if running else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if running else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), same dtype and memory format; one node of a graph of torch.fx."""
        if is_symbolic(x) or not (self.averages_for_one and self.training and self.is_single(x)):
            return super().forward(x)
        self.training = False  # of this layer alone, whatever it holds
        try:
            return super().forward(x)
        finally:
            self.training = True

    def is_single(self, x: Tensor) -> bool:
        """Tells whether batch statistics would be of one value per channel."""
        alone = not self.synced or dist.get_world_size(self.process_group) == 1
        return not is_tracing() and x.numel() == self.num_features and alone

    @property
    def affine(self) -> "Unconvertible":  # type: ignore[override]
        """Not True, because who goes by it is about to copy weight and bias into another library's layer.

        torch's and timm's convert_sync_batchnorm, timm's freeze_batch_norm_2d and convert_splitbn_model all do, and
        would silently leave plain batch normalization in this layer's place.
        """
        return Unconvertible(type(self).__name__)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.reset_running_stats()

    @property
    def averages(self) -> tuple[Tensor, Tensor] | None:
        """The running mean and variance; None where there are none, or no more: then statistics are the batch's."""
        # Not by their names, for which nn.Module is slow, and each forward pass asks.
        mean, var = self._buffers.get("running_mean"), self._buffers.get("running_var")
        return None if mean is None or var is None else (mean, var)

    @property
    def tracks(self) -> bool:
        """Tells whether batches are taken into running averages."""
        return self.track_running_stats and self.averages is not None

    @property
    def synced(self) -> bool:
        """True where batch moments are those of all ranks, now."""
        return self.sync and self.training and dist.is_available() and dist.is_initialized()

    def batch_moments(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """The batch's mean and biased variance, (1, C), in training; else, and for an empty batch, running averages."""
        averages = self.averages
        if averages and (not self.training or (not self.synced and statistics.is_empty(mean, pixels))):
            return averages[0].to(mean.dtype)[None], averages[1].to(var.dtype)[None]
        if self.synced:
            batch_mean, batch_var, count = statistics.synced_batch_moments(mean, var, pixels, self.process_group)
            self.track(batch_mean.detach()[0], batch_var.detach()[0], count)
        else:
            self.refuse_single_value(mean.shape[0], pixels)
            batch_mean, batch_var = statistics.pool(mean, var, dim=0)
            self.track(batch_mean.detach()[0], batch_var.detach()[0], mean.shape[0] * pixels)
        return batch_mean, batch_var

    def see(self, x: Tensor) -> None:
        if self.of_batches and x.numel() == self.num_features:
            self.refuse_single_value(x.shape[0], x.shape[2] * x.shape[3])

    def refuse_single_value(self, samples: int, pixels: int) -> None:
        """Raises ValueError where a batch has one value per channel, whose variance of 0 says nothing of the others."""
        if statistics.is_tracing() or samples * pixels != 1 or not (self.training or self.averages is None):
            return
        if self.synced and dist.get_world_size(self.process_group) > 1:
            return
        layer = f"{self.place}, {type(self).__name__}" if self.place else type(self).__name__
        raise ValueError(
            f"{layer} of {self.num_features} channels: expected more than one value per channel for batch statistics, "
            f"found one image with a map of 1 x 1: {SINGLE_VALUE_CURE}"
        )

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Takes a batch's mean and biased variance, (C,), of `count` values each, into the running averages.

        A tensor may count none or a single one, which leaves the averages as they are.
        """
        if not self.tracks:
            return
        refuse_vmap(mean)
        assert self.averages is not None
        running_mean, running_var = self.averages
        unbiased = count / (count - 1).clamp(min=1) if isinstance(count, Tensor) else count / max(count - 1, 1)
        taken = count > 1 if isinstance(count, Tensor) else 1
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(taken)
        share = taken * (0.0 if self.momentum is None else self.momentum)
        if self.momentum is None and self.num_batches_tracked is not None:
            share = taken / self.num_batches_tracked.clamp(min=1)
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_((var * unbiased).to(running_var.dtype), share)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}, sync={self.sync}"


def is_symbolic(x: object) -> bool:
    """Tells whether `x` stands for a value in a graph that torch.fx records."""
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
