"""Exemplar normalization (Zhang et al., Exemplar Normalization for Learning Deep Representation, CVPR 2020)."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.arguments import flag, one_of, whole
from en.norm.combined import MIN_PIXELS, CombinedNormalizer

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
RATIOS = ("correlation", "relative", "pooled", "static")
MIXES = ("outputs", "statistics")
GATE_PIXELS = 5  # of a map on which the gate is as published, by default


class ExemplarNorm2d(CombinedNormalizer):
    """Exemplar normalization: every sample learns its own mixture of normalizers in every layer.

    Y[n] = sum_k (weight_k * lambda[n, k] * (X[n] - mu_k) / sqrt(var_k + eps) + bias_k), with moments over (N, H, W) for
    bn (running averages in evaluation), (H, W) for in, (C, H, W) for ln and (C/G, H, W) for gn. That the shift is not
    weighted by the ratio is our reading of the paper. The ratios lambda[n] come from the sample itself:
    x = mean of X over (H, W); xhat[n, k] = (x[n] - mu_k) / sqrt(var_k + eps); z = grouped 1 x 1 convolution of xhat
    from C to G channels; v[n] = z[n] z[n]^T, the K x K correlations; lambda[n] = softmax(FC2(s * tanh(FC1(v[n])))). FC2
    starts at zero, so that every ratio starts at 1/K (our choice). For `in`, xhat is exactly 0, and so are its row and
    column of v.

    Args:
        num_features: C.
        normalizers: any of bn, in, ln, gn, in the order of the ratios (K of them).
        reduction: r; the convolution reduces C to G = C/r channels, or to the largest divisor of C that is at most
            max(1, C/r) (our choice; so is the default 32).
        hidden: pi; the gate has pi * K hidden units, 50 * K in the paper.
        convolution: False takes z = xhat.
        activation: tanh (the paper's) or relu.
        shared_affine: one weight and bias, (C,), for all normalizers.
        ratios: correlation (the paper's); relative takes v / (trace(v) + eps), which has one size in every layer, so
            that ratios differ more between samples, if two of bn, ln and gn are among the normalizers: else v has one
            entry, and they hardly differ (our choice); pooled takes the gate's input from x instead of v, as
            conditional normalization does; static learns one vector of ratios for all samples. Of relative and pooled
            only the four passes are native code, and their steps take longer (en/norm/kernels/SPEED.md).
        mix: outputs; statistics mixes the means and variances instead of the normalized maps, as SN does, with EN's
            ratios. There is then one map and so one weight and bias, (C,) (our choice).
        groups: groups of gn; None for gcd(32, C).
        eps, momentum, sync: as for batch normalization.
        min_pixels: H * W of the maps of training from which on `in` takes part; with smaller ones its ratio is 0,
            unless it is alone. 1 is the paper's form; the default is our choice (docs/small_maps.md).
        gate_pixels: H * W of the same from which on the gate is as published, s = 1; with smaller ones it learns more
            slowly, s = 1/sqrt(pi * K): a step of SGD then moves a logit no farther through all tanh units than through
            its bias, instead of up to pi * K times as far, and ratios differ less between samples. 1 is the paper's
            form; the default is our choice (docs/small_maps.md).
        start: the normalizer that the ratios begin on, as a bias of the gate's last layer: bn for a network that has
            been trained with it. None: all alike.
        device, dtype: of parameters and buffers.
    Parameters: `weight` ones and `bias` zeros, (K * C,), because many optimizers take what has two axes for a matrix;
    `weight_rows` and `bias_rows`, (K, C), are views of them by normalizer. `reduce.weight` (G, C/G, 1), `gate.0`
    Linear(K*K, pi*K), `gate.2` Linear(pi*K, K); `ratio_logits` (K,) instead of reduce and gate for static ratios;
    `gate.0` Linear(C, pi*K) and no reduce for pooled ones. Other modules may be put in place of `reduce` and of `gate`
    or its parts, and hooks on them: they are then called as modules, and the layer runs without code of its own. s is
    then applied to what the gate gives beyond its last bias.
    """

    deciding_options = (
        *CombinedNormalizer.deciding_options,
        *("reduction", "hidden", "convolution", "activation", "shared_affine", "ratios", "mix", "gate_pixels"),
    )

    def __init__(
        self,
        num_features: int,
        normalizers: Sequence[str] = ("bn", "in", "ln"),
        reduction: int = 32,
        hidden: int = 50,
        convolution: bool = True,
        activation: str = "tanh",
        shared_affine: bool = False,
        ratios: str = "correlation",
        mix: str = "outputs",
        groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        min_pixels: int = MIN_PIXELS,
        gate_pixels: int = GATE_PIXELS,
        start: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, normalizers, groups, eps, momentum, sync, min_pixels, start, device, dtype)
        self.reduction = whole("reduction", reduction)
        self.hidden = whole("hidden", hidden)
        self.convolution = flag("convolution", convolution)
        self.activation = one_of("activation", activation, tuple(ACTIVATIONS))
        self.gate_pixels = whole("gate_pixels", gate_pixels)
        self.shared_affine = flag("shared_affine", shared_affine)
        self.ratio_source = one_of("ratios", ratios, RATIOS)
        self.mix = one_of("mix", mix, MIXES)
        self._observer: Callable[[Tensor], None] | None = None

        k = len(self.normalizers)
        units = self.hidden * k
        self.add_affine(1 if shared_affine or mix == "statistics" else k, device, dtype)
        if ratios == "static":
            self.ratio_logits = nn.Parameter(torch.zeros(k, device=device, dtype=dtype))
        if ratios in ("correlation", "relative") and convolution:
            channels = reduced_channels(num_features, reduction)
            self.reduce = nn.Conv1d(num_features, channels, 1, groups=channels, bias=False, device=device, dtype=dtype)
        if ratios != "static":
            first = nn.Linear(num_features if ratios == "pooled" else k * k, units, device=device, dtype=dtype)
            last = nn.Linear(units, k, device=device, dtype=dtype)
            self.gate = nn.Sequential(first, ACTIVATIONS[activation](), last)
        self.reset_ratios()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in self.modules():
            if isinstance(layer, (nn.Conv1d, nn.Linear)):
                layer.reset_parameters()
        self.reset_ratios()

    @torch.no_grad()
    def reset_ratios(self) -> None:
        """Lets every sample begin with the same ratios, those of `start`."""
        if self.ratio_source == "static":
            self.ratio_logits.copy_(self.first_logits())
            return
        self.gate[2].get_parameter("weight").zero_()
        self.gate[2].get_parameter("bias").copy_(self.first_logits())

    def __getstate__(self) -> dict[str, object]:
        """Copies and files do not hold who is watching the ratios."""
        return {**super().__getstate__(), "_observer": None}

    @property
    def weight_rows(self) -> Tensor:
        """`weight` by normalizer: a view (K, C), or (1, C) where they share one."""
        return self.weight.view(-1, self.num_features)

    @property
    def bias_rows(self) -> Tensor:
        """`bias` by normalizer: a view (K, C), or (1, C) where they share one."""
        return self.bias.view(-1, self.num_features)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        offsets, variances = self.statistics(mean, var, pixels)
        ratios = self.ratios(mean, offsets, variances, self.deciding_for(mean, pixels))
        self.observe(ratios.detach())
        weight, bias = self.weight_rows.to(mean.dtype), self.bias_rows.to(mean.dtype)
        if self.mix == "statistics":
            return statistics.mix_statistics(ratios, ratios, offsets, variances, weight[0], bias[0], self.added_eps)
        return statistics.mix_outputs(ratios, offsets, variances, weight, bias, self.added_eps)

    @property
    def observed(self) -> bool:
        return self._observer is not None

    def observe(self, ratios: Tensor) -> None:
        if self._observer is not None:
            self._observer(ratios)

    def ratios(self, pooled: Tensor, offsets: Tensor, variances: Tensor, pixels: int | Tensor) -> Tensor:
        """The share of each normalizer for each sample, (N, K), rows summing to 1.

        Args:
            pooled: (N, C), x of the formula, the mean of X over (H, W).
            offsets, variances: (N, K, C), x - mu_k and var_k of the formula.
            pixels: H * W of the maps that decide: see CombinedNormalizer.
        """
        if self.ratio_source == "static":
            logits = self.ratio_logits.to(pooled.dtype).expand(offsets.shape[:2])
        else:
            inputs = pooled if self.ratio_source == "pooled" else self.correlations(offsets, variances).flatten(1)
            logits = self.gate_logits(inputs, pixels)
        return torch.softmax(self.admitted(logits, pixels), dim=1)

    def gate_logits(self, inputs: Tensor, pixels: int | Tensor) -> Tensor:
        """(N, K) of (N, K * K), or (N, C) for pooled ratios; by calling the gate where anything in it was changed.

        s is applied to what the gate gives beyond its last bias, which is the same, and leaves alone how it is called.
        """
        bias: Tensor | None
        if self.gate_is_as_made():
            first, activation, last = self.gate
            assert isinstance(last, nn.Linear)
            logits, bias = linear(last, activation(linear(first, inputs))), last.bias
        else:
            logits, bias = called(self.gate, inputs), last_bias(self.gate, len(self.normalizers))
        scale: float | Tensor
        if isinstance(pixels, int):
            scale = self.gate_scale(pixels)
            if scale == 1:
                return logits
        else:
            slow = inputs.new_full((), self.gate_scale(0))
            scale = torch.where(pixels < self.gate_pixels, slow, inputs.new_ones(()))
        return logits * scale if bias is None else torch.lerp(bias.to(logits.dtype).expand_as(logits), logits, scale)

    def gate_scale(self, pixels: int) -> float:
        """s of the formula on maps of so many pixels."""
        units: int = self.hidden * len(self.normalizers)
        return 1.0 if pixels >= self.gate_pixels else float(units**-0.5)

    def correlations(self, offsets: Tensor, variances: Tensor) -> Tensor:
        """v of the formula, (N, K, K)."""
        n, k, c = offsets.shape
        if self.convolution and not is_as_made(self.reduce, nn.Conv1d):
            xhat = offsets * torch.rsqrt(variances + self.added_eps)
            z = called(self.reduce, xhat.view(n * k, c, 1)).view(n, k, -1)
        else:
            kernel, groups = (self.reduce.weight, self.reduce.groups) if self.convolution else (offsets.new_ones(c), c)
            kernel = kernel.to(offsets.dtype).view(c)
            z = statistics.grouped_sums(offsets, variances, kernel, groups, self.added_eps)
        return statistics.correlations(z, self.added_eps if self.ratio_source == "relative" else None)

    def gate_is_as_made(self) -> bool:
        gate = self._modules["gate"]
        if not is_as_made(gate, nn.Sequential) or len(gate._modules) != 3:
            return False
        first, activation, last = gate._modules.values()
        return (
            is_as_made(first, nn.Linear)
            and is_as_made(activation, ACTIVATIONS[self.activation])
            and is_as_made(last, nn.Linear)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate_pixels={self.gate_pixels}, ratios={self.ratio_source}"

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        pixels = self.known_pixels() or pixels
        if self.ratio_source == "static":
            parameters = (self.weight, self.bias, self.ratio_logits)
            return self.plan_with(pixels, parameters, "static", self.mix == "statistics")
        if self.ratio_source != "correlation" or not self.gate_is_as_made():
            return None
        gate = self._modules["gate"]
        assert gate is not None
        first, _, last = gate._modules.values()
        assert first is not None and last is not None
        weight, reduced = own(self, "weight"), self.num_features
        if self.convolution:
            reduce = self._modules["reduce"]
            if not is_as_made(reduce, nn.Conv1d):
                return None
            assert isinstance(reduce, nn.Conv1d)
            kernel, reduced = own(reduce, "weight"), reduce.groups
        else:
            kernel = weight.new_ones(self.num_features)
        of_gate = own(first, "weight"), own(first, "bias"), own(last, "weight"), own(last, "bias")
        return self.plan_with(
            pixels,
            (weight, own(self, "bias"), kernel, *of_gate),
            self.ratio_source,
            self.mix == "statistics",
            activation=self.activation,
            gate_scale=self.gate_scale(pixels),
            gate_pixels=self.gate_pixels,
            reduced=reduced,
        )


def own(layer: nn.Module, name: str) -> Tensor:
    """A parameter of the layer, or what stands under its name, for which nn.Module looks a microsecond longer."""
    found = layer._parameters.get(name)
    return getattr(layer, name) if found is None else found


def is_as_made(layer: nn.Module | None, kind: type[nn.Module]) -> TypeGuard[nn.Module]:
    """Tells whether calling the layer does what its class does: no other class in its place and no hooks on it.

    Asked several times in each forward pass, so without a loop.
    """
    return (
        layer is not None
        and type(layer) is kind
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and not layer._backward_pre_hooks
        and not layer._backward_hooks
    )


def called(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer's output in the precision of its inputs, called in that of its parameters."""
    dtype = next((parameter.dtype for parameter in layer.parameters()), inputs.dtype)
    outputs: Tensor = layer(inputs.to(dtype))
    return outputs.to(inputs.dtype)


def last_bias(gate: nn.Module, size: int) -> Tensor | None:
    """The last bias of that size in a gate, in whatever it may be wrapped; quantized layers have a method for it."""
    for layer in reversed(list(gate.modules())):
        bias = getattr(layer, "bias", None)
        bias = bias() if callable(bias) else bias
        if isinstance(bias, Tensor) and (statistics.is_tracing() or bias.shape == (size,)):
            return bias
    return None


def linear(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A linear layer computed in the precision of its inputs, whatever that of its parameters."""
    assert isinstance(layer, nn.Linear)
    return F.linear(inputs, layer.weight.to(inputs.dtype), layer.bias.to(inputs.dtype))


def reduced_channels(num_features: int, reduction: int) -> int:
    """G, the largest divisor of C that is at most max(1, C/r)."""
    limit = max(1, num_features // reduction)
    return next(g for g in range(limit, 0, -1) if num_features % g == 0)
