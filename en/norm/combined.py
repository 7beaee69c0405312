"""A normalizer that combines several kinds of statistics: what EN, SN and SSN share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.arguments import check_groups, check_normalizers, one_of, positive, whole
from en.norm.base import RunningNormalizer
from en.norm.refusals import MixtureEps

MIN_PIXELS = 65  # of a map on which `in` takes part, by default
HEAD_START = 3.0
"""How far, before the softmax, `start` puts one normalizer ahead of the others."""


class CombinedNormalizer(RunningNormalizer):
    """A normalizer that combines several kinds of statistics.

    Args:
        normalizers: any of bn, in, ln, gn, each once, in the order of the ratios (K of them).
        groups: groups of gn; None for gcd(32, C).
        min_pixels: H * W from which on `in` takes part; on smaller maps its ratio is 0, unless it is alone.
        start: the one of them that the ratios begin on; None for all alike.
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
        start: str | None,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        known = check_normalizers(normalizers)
        super().__init__(num_features, eps, momentum, sync, "bn" in known, device, dtype)
        self.normalizers = known
        self.groups = check_groups(groups, num_features)
        self.min_pixels = whole("min_pixels", min_pixels)
        self.start = start if start is None else one_of("start", start, known)

    def first_logits(self) -> Tensor:
        """What the ratios' softmax is taken of at the start, (K,)."""
        return torch.tensor([HEAD_START if name == self.start else 0.0 for name in self.normalizers])

    @property
    def eps(self) -> float:
        """Added to every variance, for readers; in formulas it is `added_eps`."""
        if torch.compiler.is_compiling():
            return self.added_eps
        eps = MixtureEps(self.added_eps)
        eps.own = self._buffers.get("running_var")
        return eps

    @eps.setter
    def eps(self, value: float) -> None:
        self.added_eps = float(positive("eps", value))

    def statistics(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """Of every normalizer, mean - mu_k and the biased variance: two tensors (N, K, C)."""
        batch = self.batch_moments(mean, var, pixels) if "bn" in self.normalizers else None
        return statistics.statistics(mean, var, self.normalizers, self.groups, batch)

    @property
    def dispensable(self) -> int:
        """The place of `in` among the ratios, where maps may be too small for it and others are there; else -1."""
        in_place = self.min_pixels > 1 and len(self.normalizers) > 1 and "in" in self.normalizers
        return self.normalizers.index("in") if in_place else -1

    def admitted(self, logits: Tensor, pixels: int | torch.SymInt) -> Tensor:
        """The logits of the ratios (..., K), that of `in` -inf where maps of so many pixels are too small for it."""
        place = self.dispensable
        if place < 0 or (isinstance(pixels, int) and pixels >= self.min_pixels):
            return logits
        absent = torch.arange(len(self.normalizers), device=logits.device) == place
        if not isinstance(pixels, int):  # a size that a compiled or exported graph leaves open
            absent = absent & (logits.new_full((), pixels) < self.min_pixels)
        return logits.masked_fill(absent, -torch.inf)

    def plan_with(
        self,
        pixels: int,
        parameters: tuple[Tensor, ...],
        ratios: str,
        mix_statistics: bool,
        activation: str = "tanh",
        gate_scale: float = 1.0,
        reduced: int = 1,
        origins: tuple[Tensor, ...] = (),
        normalizers: tuple[str, ...] | None = None,
    ) -> kernels.NativePlan | None:
        """A native plan for maps of so many pixels; None where statistics are of all ranks or leave no averages.

        Other arguments as for NativePlan.
        """
        averaged = "bn" in self.normalizers
        if self.synced or (averaged and not self.track_running_stats):
            return None
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked) if averaged else None
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
            gate_scale=gate_scale,
            reduced=reduced,
            absent=self.dispensable if pixels < self.min_pixels else -1,
            origins=origins,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, normalizers={self.normalizers}, min_pixels={self.min_pixels}"
