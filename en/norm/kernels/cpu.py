"""A mixed normalizer on a CPU: its whole forward, and its whole backward, as one call of cpu/normalizers.cpp each.

The same as autograd.py with the coefficients of switchable.py and exemplar.py; tests compare them. It exists because on small
inputs the time goes into calls: some hundred operations on (N, K, C) take longer than the four passes over (N, C, H, W).
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels import compiled, passes

_KINDS = {"in": 0, "given": 1, "bn": 2, "ln": 3, "gn": 3}
_SOURCES = ("correlation", "pooled", "logits")
_ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True)
class Recipe:
    """What a mixed normalizer computes: which statistics, where the ratios come from, what is mixed.

    Attributes:
        normalizers, groups, eps: as for MixedNormalizer.
        parameters: by their names in compiled.PARAMETERS; weight and bias at least.
        source: correlation, pooled or logits (one vector of ratios, or two, for means and for variances).
        mix_statistics: as SN does; else the normalized maps are mixed.
        activation: of the gate.
        reduced: G, groups of the convolution.
        training: batch statistics rather than the running averages.
        running: mean, variance and count of batches, where bn is among the normalizers.
        momentum: as for MixedNormalizer.
    """

    normalizers: tuple[str, ...]
    groups: int
    eps: float
    parameters: Mapping[str, Tensor]
    source: str
    mix_statistics: bool
    training: bool = False
    running: tuple[Tensor, Tensor, Tensor] | None = None
    momentum: float | None = None
    activation: str = "tanh"
    reduced: int = 1


def usable(x: Tensor, recipe: Recipe) -> bool:
    """Whether the compiled form can take this input: it is compiled, and all else is on the CPU and of the moments' type."""
    if compiled.library_for(x) is None:
        return False
    dtype = passes.accumulation_dtype(x.dtype)
    others = [*recipe.parameters.values(), *(recipe.running or ())[:2]]
    return all(part.dtype == dtype and compiled.plain_cpu(part) for part in others)


def normalize(x: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The normalized x, and the ratios (N, K) without a gradient; updates the running averages in training."""
    return _Mixed.apply(x, recipe, *recipe.parameters.values())  # type: ignore[no-any-return]


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, recipe: Recipe, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = passes.dense(x)
        parameters = tuple(part.contiguous() for part in parameters)
        library = compiled.library_for(x)
        assert library is not None
        call = _call(x, recipe, parameters)
        saved = torch.empty(library.en_saved_size(ctypes.byref(call)), dtype=passes.accumulation_dtype(x.dtype))
        y = torch.empty_like(x)
        call.x, call.y, call.saved = x.data_ptr(), y.data_ptr(), saved.data_ptr()
        if recipe.running is not None:
            mean, var, count = recipe.running
            call.running_mean, call.running_var = mean.data_ptr(), var.data_ptr()
            if recipe.training:
                count.add_(1)
                call.update, call.share = 1, 1 / count.item() if recipe.momentum is None else recipe.momentum
        library.en_mixed_forward(ctypes.c_int64(compiled.TYPES[x.dtype]), ctypes.byref(call))
        ctx.save_for_backward(x, saved, *parameters)
        ctx.recipe = recipe  # type: ignore[attr-defined]
        n, k = len(x), len(recipe.normalizers)
        ratios = saved[: n * k].view(n, k).clone()
        ctx.mark_non_differentiable(ratios)
        return y, ratios

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        compiled.refuse_second_derivative()
        x, saved, *parameters = ctx.saved_tensors  # type: ignore[attr-defined]
        recipe = ctx.recipe  # type: ignore[attr-defined]
        library = compiled.library_for(x)
        assert library is not None
        dy = passes.dense(dy, like=x)
        call = _call(x, recipe, parameters)
        call.x, call.dy, call.saved = x.data_ptr(), dy.data_ptr(), saved.data_ptr()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        if dx is not None:
            call.dx = dx.data_ptr()
        grads = [torch.empty_like(part) for part in parameters]
        for name, grad in zip(recipe.parameters, grads, strict=True):
            setattr(call, f"d_{name}", grad.data_ptr())
        library.en_mixed_backward(ctypes.c_int64(compiled.TYPES[x.dtype]), ctypes.byref(call))
        return dx, None, *grads


def _call(x: Tensor, recipe: Recipe, parameters: tuple[Tensor, ...]) -> compiled.Mixed:
    """All but the tensors that only one direction has."""
    n, c, h, w = x.shape
    kinds = [_KINDS["given" if name == "bn" and not recipe.training else name] for name in recipe.normalizers]
    groups = [recipe.groups if name == "gn" else 1 for name in recipe.normalizers]
    hidden = recipe.parameters["w1"].shape[0] if "w1" in recipe.parameters else 0
    weight = recipe.parameters["weight"]
    return compiled.Mixed(
        samples=n,
        channels=c,
        pixels=h * w,
        threads=torch.get_num_threads(),
        channels_last=not x.is_contiguous(),
        kinds=len(kinds),
        kind=(*kinds,),
        groups=(*groups,),
        source=_SOURCES.index(recipe.source),
        reduced=recipe.reduced,
        hidden=hidden,
        activation=_ACTIVATIONS.index(recipe.activation),
        statistics=recipe.mix_statistics,
        affine_rows=weight.numel() // c,
        eps=recipe.eps,
        **{name: part.data_ptr() for name, part in zip(recipe.parameters, parameters, strict=True)},
    )
