"""A normalizer that combines several kinds of statistics: what EN, SN and SSN share."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.types import Device

from en.norm import kernels, statistics, weight_options
from en.norm.arguments import check_groups, check_normalizers, one_of, positive, whole
from en.norm.base import RunningNormalizer
from en.norm.refusals import MixtureEps
from en.norm.weight_options import option

MIN_PIXELS = 65  # of a map on which `in` takes part, by default
HEAD_START = 4.0
"""How far, before the softmax, `start` puts one normalizer ahead of the others."""


UNREAD: tuple[Tensor | None, int, int] = (None, -1, 0)
WITHOUT_MAPS = (
    "weights without trained_pixels, the size of the maps that en, sn and ssn were trained on: assumed is what the "
    "network says already or, where it says nothing, the maps that each layer sees; see en.norm.fix_maps"
)
OTHER_MAPS = (
    "en, sn or ssn is evaluated on maps whose sides differ by more than a quarter from those that it was trained on, "
    "where it was measured to lose more than bn: see docs/compatibility.md"
)
MIXED_SIZES = (
    "en, sn or ssn is trained on maps whose sides differ by more than a quarter from those of its first batch, which "
    "decided what it mixes: call en.norm.fix_maps(model, images) before"
)
MOST_PIXELS = 2**48
TOLERANCE = 0.25  # of the sides of a map, without a warning


class MapsWarning(UserWarning):
    """Maps are of another size than those that a layer was trained on, or that size is not known."""


class CombinedNormalizer(RunningNormalizer):
    """A normalizer that combines several kinds of statistics.

    What it mixes is decided by the maps that it is trained on, and stays: their size is kept with the weights, as the
    buffer `trained_pixels`. The first batch in training mode that has gradients says it, or fix_maps(). A layer that
    was never trained goes by the maps that it sees.

    Args:
        normalizers: any of bn, in, ln, gn, each once, in the order of the ratios (K of them).
        groups: groups of gn; None for gcd(32, C).
        min_pixels: H * W of the maps of training from which on `in` takes part; with smaller ones its ratio is 0,
            unless it is alone.
        start: the one of them that the ratios begin on; None for all alike.
    """

    deciding_options: ClassVar[tuple[str, ...]] = ("normalizers", "groups", "eps", "min_pixels")
    """The options on which the function of the weights depends."""

    trained_pixels: Tensor
    _read: tuple[Tensor | None, int, int] = UNREAD
    _warned = False
    _by_batch = _just_filled = False

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
        self.register_buffer("trained_pixels", torch.zeros((), dtype=torch.long, device=device))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.fix_pixels(0)

    def __getstate__(self) -> dict[str, object]:
        """Leaves out of copies and files what was read of a buffer that they have as another tensor."""
        return {name: part for name, part in vars(self).items() if name != "_read"}

    def get_extra_state(self) -> Tensor:
        """Returns the options on which the function of the weights depends, packed: see weight_options."""
        # A new tensor each time: some who keep averages write into all that a state_dict holds.
        return weight_options.packed({name: option(self, name) for name in self.deciding_options})

    def set_extra_state(self, state: object) -> None:
        """Takes nothing: options are the constructor's, and compared in `_load_from_state_dict`."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._read = UNREAD
        _, _, missing_keys, _, errors = rest
        extra, pixels = f"{prefix}{weight_options.KEY}", f"{prefix}trained_pixels"
        own = {name: option(self, name) for name in self.deciding_options}
        if extra in state_dict:
            errors += weight_options.differences(prefix.rstrip("."), state_dict[extra], own, type(self))
        if f"{prefix}weight" in state_dict:  # weights of an earlier version have neither
            missing_keys[:] = [key for key in missing_keys if key not in (extra, pixels)]
            if pixels not in state_dict:
                warnings.warn(WITHOUT_MAPS, MapsWarning, stacklevel=2)
            elif not self.trained_pixels.is_meta and not 0 <= int(self.trained_pixels) < MOST_PIXELS:
                errors.append(
                    f"{pixels}: expected a whole number of pixels, which a cast to another type may have lost"
                )

    def first_logits(self) -> Tensor:
        """Returns the initial logits of the ratios, (K,)."""
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
        """Computes mean - mu_k and the biased variance of every normalizer: two tensors (N, K, C)."""
        batch = self.batch_moments(mean, var, pixels) if "bn" in self.normalizers else None
        return statistics.statistics(mean, var, self.normalizers, self.groups, batch)

    @torch.no_grad()
    def fix_pixels(self, pixels: int) -> None:
        """Takes H * W of the maps that the layer is trained on; 0 forgets it."""
        self.trained_pixels.fill_(pixels)
        self._read, self._by_batch = UNREAD, False

    def forget(self) -> None:
        self._read = UNREAD

    def known_pixels(self) -> int:
        """H * W of the maps that the layer was trained on; 0 where it was not, and in graphs, which may not look.

        Reading a buffer waits for a GPU. There it is read after a change of mode and where torch counts a change of it;
        what torch does not count, such as DDP's broadcasts before each step, is not seen until then.
        """
        if torch.compiler.is_compiling():
            return 0
        buffer = self._buffers["trained_pixels"]
        assert buffer is not None
        if buffer.is_cpu:
            return int(buffer.item())
        if buffer.is_meta:
            return 0
        read, version, pixels = self._read
        if read is not buffer or version != version_of(buffer):
            pixels = int(buffer)
            self._read = buffer, version_of(buffer), pixels
        return pixels

    def see(self, x: Tensor) -> None:
        """Learns from the first batch of training what the layer mixes; warns, once, of maps of another size."""
        super().see(x)
        if self._just_filled:  # DDP has written the first rank's value into all others' buffers since
            self._read, self._just_filled = UNREAD, False
        known, pixels = self.known_pixels(), x.shape[2] * x.shape[3]
        if known == pixels:
            return
        if known:
            of_concern = self._by_batch if self.training else not self._warned
            if of_concern and abs((pixels / known) ** 0.5 - 1) > TOLERANCE:
                self._by_batch, self._warned = False, True
                warnings.warn(MIXED_SIZES if self.training else OTHER_MAPS, MapsWarning, stacklevel=2)
        elif self.training and torch.is_grad_enabled():  # an empty batch, too: other ranks have had maps
            self.fix_pixels(pixels)
            self._by_batch = self._just_filled = True

    def plain(self, x: Tensor) -> Tensor:
        y = super().plain(x)
        # A transform of torch.func does not let a function write into what it has from outside.
        transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        if self.learns and not transformed:
            self.learn(self.deciding(x.shape[2] * x.shape[3]))
        return y

    @property
    def learns(self) -> bool:
        """Tells whether a batch says what the layer mixes, where none has yet."""
        return self.training and torch.is_grad_enabled()

    @torch.no_grad()
    def learn(self, deciding: Tensor) -> None:
        """Takes H * W of the maps that decide what is mixed, in graphs that are recorded."""
        self.trained_pixels.copy_(deciding)

    def deciding(self, pixels: int | torch.SymInt) -> Tensor:
        """H * W of the maps that decide what is mixed: those of training or, where there were none, of so many pixels.

        On the device and without a look at its value, for graphs that are recorded.
        """
        known = self.trained_pixels
        return torch.where(known > 0, known, known.new_full((), pixels))

    def deciding_for(self, mean: Tensor, pixels: int) -> int | Tensor:
        """The same for `coefficients`: a number wherever nothing looks into the operations on `mean`."""
        looked_into = torch.compiler.is_compiling() or kernels.is_looked_into(mean)
        return self.deciding(pixels) if looked_into else self.known_pixels() or pixels

    @property
    def dispensable(self) -> int:
        """The place of `in` among the ratios, where maps may be too small for it and others are there; else -1."""
        in_place = self.min_pixels > 1 and len(self.normalizers) > 1 and "in" in self.normalizers
        return self.normalizers.index("in") if in_place else -1

    def admitted(self, logits: Tensor, pixels: int | Tensor) -> Tensor:
        """The logits of the ratios (..., K), that of `in` -inf where maps of so many pixels are too small for it."""
        place, small = self.dispensable, pixels < self.min_pixels
        if place < 0 or small is False:
            return logits
        absent = torch.arange(len(self.normalizers), device=logits.device) == place
        return logits.masked_fill(absent & small, -torch.inf)

    def plan_with(
        self,
        pixels: int,
        parameters: tuple[Tensor, ...],
        ratios: str,
        mix_statistics: bool,
        activation: str = "tanh",
        gate_scale: float = 1.0,
        gate_pixels: int = 1,
        reduced: int = 1,
        origins: tuple[Tensor, ...] = (),
        normalizers: tuple[str, ...] | None = None,
    ) -> kernels.NativePlan | None:
        """A native plan, decided by maps of so many pixels; None for statistics of all ranks, or without averages.

        `gate_pixels` as for EN, other arguments as for NativePlan.
        """
        averages, batches = self.averages, self._buffers.get("num_batches_tracked")
        averaged = "bn" in self.normalizers
        if self.synced or (averaged and (averages is None or batches is None or not self.track_running_stats)):
            return None
        buffers = (*averages, batches) if averaged and averages and batches is not None else None
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
            thresholds=(self.min_pixels, gate_pixels),
            origins=origins,
        )

    @property
    def mixed(self) -> tuple[str, ...] | None:
        """The normalizers that take part on the maps that the layer was trained on; None where it was not."""
        pixels = 0 if kernels.is_looked_into(self.trained_pixels) else self.known_pixels()
        if not pixels:
            return None
        absent = self.dispensable if pixels < self.min_pixels else -1
        return tuple(name for place, name in enumerate(self.normalizers) if place != absent)

    def extra_repr(self) -> str:
        pixels = 0 if kernels.is_looked_into(self.trained_pixels) else self.known_pixels()
        of_maps = f"mixes {', '.join(self.mixed or ())} of maps of {pixels} pixels" if pixels else "not trained"
        options = f"normalizers={self.normalizers}, min_pixels={self.min_pixels}"
        return f"{super().extra_repr()}, {options}, {of_maps}"


def version_of(buffer: Tensor) -> int:
    """Changes whenever somebody writes into the buffer; not for what inference mode made, of which torch keeps none."""
    return -1 if buffer.is_inference() else buffer._version
