"""A normalizer's forward and backward with its input touched twice each way, and only the input kept in between.

The four passes, of gpu/ or cpu.py where those can take x and of passes.py elsewhere, do all work on (N, C, H, W). What
lies between, from each cell's moments to its scale and shift, is (N, K, C) or smaller, and is left to autograd: a small
graph is recorded in the forward pass and differentiated in the backward one, between the two passes. So a new
normalizer needs no backward of its own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels import cpu, passes
from en.norm.kernels.again import Again
from en.norm.kernels.gpu import device as gpu
from en.norm.statistics import full_precision

Coefficients = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Passes(Protocol):
    """A module that has the four passes: see passes.py."""

    def moments(self, x: Tensor) -> Tensor: ...
    def affine(self, x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor: ...
    def gradient_sums(self, dy: Tensor, x: Tensor, stats: Tensor) -> Tensor: ...
    def input_gradient(
        self, dy: Tensor, x: Tensor, stats: Tensor, sum_dy: Tensor, scale: Tensor, d_mean: Tensor, d_var: Tensor
    ) -> Tensor: ...


def normalize(x: Tensor, coefficients: Coefficients, parameters: Sequence[Tensor], again: Again) -> Tensor:
    """scale * (X - mean) + shift, with scale and shift given by coefficients(mean, var, H * W).

    Args:
        x: (N, C, H, W); the output has its type and memory format.
        coefficients: scale and shift, (N, C) or broadcastable to it, from the mean and biased variance, (N, C), over
            (H, W).
        parameters: what coefficients() uses and gradients are wanted of.
        again: for a backward pass that is to be differentiated itself.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return _Normalize.apply(x, coefficients, again, *parameters)  # type: ignore[no-any-return]
    x, run = passes.dense(x), passes_for(x)
    stats = run.moments(x)
    scale, shift = _per_cell(coefficients, stats[0], stats[1], x)
    return run.affine(x, stats, scale, shift)


def passes_for(x: Tensor) -> Passes:
    """Who runs the four passes over `x`."""
    if gpu.can_take(x):
        return gpu.triton_passes()
    return cpu if cpu.can_take(x) else passes


def _per_cell(coefficients: Coefficients, mean: Tensor, var: Tensor, x: Tensor) -> list[Tensor]:
    with full_precision(x.device.type):
        pair = coefficients(mean, var, x.shape[2] * x.shape[3])
        return [part.to(mean.dtype).expand(mean.shape).contiguous() for part in pair]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, coefficients: Coefficients, again: Again, *parameters: Tensor) -> Tensor:
        x, run = passes.dense(x), passes_for(x)
        stats = run.moments(x)
        with torch.enable_grad():
            mean, var = (part.detach().requires_grad_() for part in stats[:2])
            outputs = _per_cell(coefficients, mean, var, x)
        scale, shift = (part.detach() for part in outputs)
        ctx.save_for_backward(x, stats, scale)
        ctx.graph = [mean, var, *parameters], outputs  # type: ignore[attr-defined]
        ctx.again = again  # type: ignore[attr-defined]
        return run.affine(x, stats, scale, shift)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, stats, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        inputs, outputs = ctx.graph  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            dx, *grads = ctx.again.gradients(x, dy, [x, *inputs[2:]])  # type: ignore[attr-defined]
            return dx, None, None, *grads
        dy, run = passes.dense(dy, like=x), passes_for(x)
        sum_dy, dot = run.gradient_sums(dy, x, stats)
        wanted = [i for i, part in enumerate(inputs) if part.requires_grad]
        pairs = [(out, grad) for out, grad in zip(outputs, (dot, sum_dy), strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [inputs[i] for i in wanted],
            [grad for _, grad in pairs],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        grads = [None] * len(inputs)
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
        dx = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            d_mean, d_var = (grad.contiguous() for grad in found[:2])
            dx = run.input_gradient(dy, x, stats, sum_dy, scale, d_mean, d_var)
        return dx, None, None, *grads[2:]
