"""A whole layer on a GPU: at most 5 launches forward and 7 backward, of which two each way read X.

    forward    moments (its parts merged), pool, coefficients, affine
    backward   gradient_sums (its parts merged), ratio_gradients, pool_gradients, gate_gradients or logit_gradients,
               moment_gradients, input_gradient

Only X and what is (N, C) or smaller is kept in between. Nothing waits for the GPU, and memory comes from torch.empty
alone, so that CUDA graphs can record it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels.again import Again
from en.norm.kernels.gpu import backward_kernels, forward_kernels, gate_kernels, passes
from en.norm.kernels.gpu.blocks import ceil_div, power_of_two
from en.norm.kernels.gpu.launches import launch, on_device_of
from en.norm.kernels.gpu.small import Small, small_of
from en.norm.kernels.passes import dense
from en.norm.kernels.plan import RATIOS, NativePlan
from en.norm.statistics import moments_dtype

SAMPLES = 32
"""Samples at a time in the sums of the gate's gradients."""


@dataclass(frozen=True)
class Parameters:
    """A plan's parameters, or their gradients, by name; None for those that its ratios do not need."""

    weight: Tensor
    bias: Tensor
    kernel: Tensor | None = None
    gate: tuple[Tensor, ...] = (None, None, None, None)  # type: ignore[assignment]
    logits: Tensor | None = None
    var_logits: Tensor | None = None


def by_name(small: Small, parameters: Sequence[Tensor]) -> Parameters:
    weight, bias, *rest = parameters
    if RATIOS[small.source] == "static":
        return Parameters(weight, bias, logits=rest[0], var_logits=rest[-1])
    return Parameters(weight, bias, rest[0], tuple(rest[1:]))


@dataclass(frozen=True)
class Kept:
    """Keeps what the backward pass needs of the forward one, besides x and the parameters.

    Attributes:
        statistics: of the cells, bn, ln and gn: see sets.py.
        scale: (N, C).
        ratios: (2, N, K), of means or outputs and of variances.
        z, v, hidden: of the gate: (N, K, G), (N, K, K), (N, H); empty without one.
    """

    statistics: Tensor
    scale: Tensor
    ratios: Tensor
    z: Tensor
    v: Tensor
    hidden: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.statistics, self.scale, self.ratios, self.z, self.v, self.hidden

    def stats(self, small: Small) -> Tensor:
        cells = small.samples * small.channels
        return self.statistics[: 4 * cells].view(4, small.samples, small.channels)


def memory_for(small: Small, x: Tensor) -> Kept:
    dtype, n, k = moments_dtype(x.dtype), small.samples, len(small.kinds)
    correlated = small.source == RATIOS.index("correlation")
    sizes = (
        (small.buffer(4),),
        (n, small.channels),
        (2, n, k),
        (n, k, small.reduced if correlated else 0),
        (n, k, k if correlated else 0),
        (n, small.units),
    )
    return Kept(*(x.new_empty(size, dtype=dtype) for size in sizes))


def normalize(plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor]:
    """The normalized x, and the ratios (N, K) without a gradient; updates the running averages in training."""
    y, ratios = _Layer.apply(dense(x), plan, again, *(part.contiguous() for part in plan.parameters), *plan.origins)
    return y, ratios


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, plan: NativePlan, again: Again, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        small, parameters = small_of(plan, x), inputs[: len(plan.parameters)]
        with on_device_of(x):
            y, kept = forward(plan, small, x, by_name(small, parameters))
        ctx.save_for_backward(x, *kept.tensors(), *inputs)
        ctx.small, ctx.again, ctx.count = small, again, len(parameters)  # type: ignore[attr-defined]
        ratios = kept.ratios[0]
        ctx.mark_non_differentiable(ratios)
        return y, ratios

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        small: Small = ctx.small  # type: ignore[attr-defined]
        x, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
        kept, inputs = Kept(*saved[:6]), saved[6:]
        if torch.is_grad_enabled():
            d_x, *d_inputs = ctx.again.gradients(x, dy, [x, *inputs])  # type: ignore[attr-defined]
            return d_x, None, None, *d_inputs
        parameters = inputs[: ctx.count]  # type: ignore[attr-defined]
        grads = [torch.empty_like(part) for part in parameters]
        for_input, _, _, *wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        wanted = wanted[: len(parameters)]
        with on_device_of(x):
            named = by_name(small, parameters), by_name(small, grads)
            dx = backward(small, x, dense(dy, like=x), kept, *named, for_input, any(wanted[2:]))
        unused = [None] * (len(inputs) - len(parameters))
        return dx, None, None, *(grad if asked else None for grad, asked in zip(grads, wanted, strict=True)), *unused


def forward(plan: NativePlan, small: Small, x: Tensor, parameters: Parameters) -> tuple[Tensor, Kept]:
    """The normalized x, and what the backward pass needs; updates the running averages in training."""
    kept = memory_for(small, x)
    stats = kept.stats(small)
    passes.moments(x, stats)
    pool(plan, small, kept.statistics)
    shift = torch.empty_like(kept.scale)
    launch(
        forward_kernels.coefficients,
        (small.samples,),
        *(kept.statistics, plan.running[2] if plan.running and plan.training else None),
        *(parameters.weight, parameters.bias, parameters.kernel, *parameters.gate),
        *(parameters.logits, parameters.var_logits, kept.ratios, kept.z, kept.v, kept.hidden, kept.scale, shift),
        *(small.packed, small.samples, small.channels, small.groups, small.reduced, small.units),
        **small.for_coefficients,
    )
    return passes.affine(x, stats, kept.scale, shift), kept


def pool(plan: NativePlan, small: Small, statistics: Tensor) -> None:
    """Statistics of bn, ln and gn, and the running averages."""
    pooling = small.for_pool
    if 0 in pooling.grid:
        return
    launch(
        forward_kernels.pool,
        pooling.grid,
        *(statistics, *(plan.running or (None, None, None))),
        *(small.samples, small.channels, small.groups, small.pixels),
        MOMENTUM=plan.momentum,
        **pooling.constants,
    )


def backward(
    small: Small,
    x: Tensor,
    dy: Tensor,
    kept: Kept,
    parameters: Parameters,
    grads: Parameters,
    for_input: bool,
    for_ratios: bool,
) -> Tensor | None:
    """dX, where it is wanted; fills in the gradients of the parameters, of the ratios' where they are wanted."""
    stats = kept.stats(small)
    sums = passes.gradient_sums(dy, x, stats)
    d_logits, d_hidden, d_v = (torch.empty_like(part) for part in (kept.ratios, kept.hidden, kept.v))
    d_statistics = sums.new_empty(small.buffer(2))
    sizes = (small.samples, small.channels, small.groups)
    w1, _, w2, _ = parameters.gate
    if for_ratios or small.source != RATIOS.index("static"):
        launch(
            backward_kernels.ratio_gradients,
            (small.samples,),
            *(kept.statistics, sums, parameters.weight, w1, w2, kept.ratios, kept.hidden),
            *(d_logits, d_hidden, d_v, small.packed, *sizes, small.units),
            **small.for_ratio_gradients,
        )
    pooling = small.for_pool_gradients
    cells = (kept.statistics, sums, parameters.weight, parameters.kernel, kept.ratios, kept.z, d_v, d_statistics)
    launch(
        backward_kernels.pool_gradients,
        pooling.grid,
        *(*cells, grads.weight, grads.bias, grads.kernel),
        *(small.packed, *sizes, small.reduced),
        **small.formula,
        **pooling.constants,
        warps=8,
    )
    if for_ratios:
        gate_gradients(small, kept, grads, d_logits, d_hidden)
    if not for_input:
        return None
    launch(
        backward_kernels.moment_gradients,
        (small.samples, ceil_div(small.channels, small.for_moment_gradients["CHANNELS"])),
        *(*cells, small.packed, *sizes, small.reduced),
        **small.for_moment_gradients,
    )
    d_mean, d_var = d_statistics[: 2 * sums[0].numel()].view_as(sums)
    return passes.input_gradient(dy, x, stats, sums[0], kept.scale, d_mean, d_var)


def gate_gradients(small: Small, kept: Kept, grads: Parameters, d_logits: Tensor, d_hidden: Tensor) -> None:
    """Gradients of what the ratios come from, summed over the samples."""
    ratios = {"K": len(small.kinds), "ROWS": small.rows, "SAMPLES": min(SAMPLES, power_of_two(small.samples))}
    if grads.logits is not None:
        sets = 2 if small.apart else 1
        launch(gate_kernels.logit_gradients, (sets,), d_logits, grads.logits, grads.var_logits, small.samples, **ratios)
        return
    width = len(small.kinds) ** 2
    units, block = min(8, power_of_two(small.units)), min(16, power_of_two(width))
    launch(
        gate_kernels.gate_gradients,
        (ceil_div(small.units, units), ceil_div(width, block)),
        *(kept.v, kept.hidden, d_hidden, d_logits, *grads.gate, small.samples, small.units, width),
        **ratios,
        GATE_SCALE=small.gate_scale,
        UNITS=units,
        INPUTS=block,
    )
