"""A whole layer on a GPU: at most 4 launches forward and 3 backward, of which two each way read X.

    forward    moments, pool, coefficients, affine
    backward   layer_sums, pool_gradients, layer_input_gradient

Only X and what is (N, C) or smaller is kept in between. Nothing waits for the GPU, and memory comes from torch.empty
alone, or zeros for counters, so that CUDA graphs can record it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels.again import Again
from en.norm.kernels.gpu import backward_kernels, forward_kernels, pass_kernels
from en.norm.kernels.gpu.launches import Launch
from en.norm.kernels.gpu.passes import launch_moments
from en.norm.kernels.gpu.ready import Ready, ready_for
from en.norm.kernels.gpu.small import BATCH, Small
from en.norm.kernels.passes import dense
from en.norm.kernels.plan import RATIOS, NativePlan

Averages = tuple[Tensor, Tensor, Tensor] | None
"""Running mean and variance, and count of batches."""

RATIOS_PLACE = 2
"""The place of the ratios among what is kept."""


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


class Kept(NamedTuple):
    """Keeps what the backward pass needs of the forward one, besides x and the parameters.

    Attributes:
        statistics: of the cells, bn, ln and gn: see sets.py.
        scale: (N, C).
        ratios: (2, N, K), of means or outputs and of variances.
        z, v, hidden: of the gate: (N, K, G), (N, K, K), (N, H); empty without one.
        arrived: zeros (N), by which the backward pass knows which program is a sample's last: see layer_sums.
    """

    statistics: Tensor
    scale: Tensor
    ratios: Tensor
    z: Tensor
    v: Tensor
    hidden: Tensor
    arrived: Tensor


def normalize(plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor | None]:
    """The normalized x; and the ratios (N, K) without a gradient, if the layer is observed.

    Updates the running averages in training.
    """
    x = dense(x)
    ready, parameters = ready_for(plan, x), plan.parameters
    if not all(map(Tensor.is_contiguous, parameters)):
        parameters = tuple(part.contiguous() for part in parameters)
    call = Call(ready, x.new_empty(ready.kept.size, dtype=ready.dtype), plan.running, again, len(parameters))
    y: Tensor = _Layer.apply(x, call, *parameters, *plan.origins)
    if not again.layer.observed:
        return y, None
    return y, ready.kept.views(call.block)[RATIOS_PLACE][0]


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
        ready: what is known of such calls.
        block: memory of `ready.kept`.
        running: averages.
        again: for second derivatives.
        planned: how many parameters the plan has.
    """

    ready: Ready
    block: Tensor
    running: Averages
    again: Again
    planned: int


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, call: Call, *inputs: Tensor) -> Tensor:
        ready, block, running, _, count = call
        parameters = inputs[:count]
        y, work = torch.empty_like(x), block.new_empty(ready.forward_work.size)
        counters = ready.counters(x)
        tensors = (x, y, block, work, *counters, *parameters, *(running or ()))
        if not ready.launch_again("forward", tensors):
            memory = (block, ready.kept), (work, ready.forward_work)
            ready.launch("forward", tensors, memory, partial(forward, ready, running, x, y, parameters, counters))
        ctx.save_for_backward(x, block, *inputs)
        ctx.given = ready, call.again, count  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, block, *inputs = ctx.saved_tensors  # type: ignore[attr-defined]
        ready, again, count = ctx.given  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            d_x, *d_inputs = again.gradients(x, dy, [x, *inputs])
            return d_x, None, *d_inputs
        for_input, _, *wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        key = for_input, any(wanted[2:count])
        parameters, dy = inputs[:count], dense(dy, like=x)
        grads = list(map(torch.empty_like, parameters))
        dx = torch.empty_like(x) if for_input else None
        work = block.new_empty(ready.backward_work.size)
        tensors = (x, dy, block, work, *parameters, *grads, *([] if dx is None else [dx]))
        if not ready.launch_again(key, tensors):
            memory = (block, ready.kept), (work, ready.backward_work)
            ready.launch(key, tensors, memory, partial(backward, ready, x, dy, dx, parameters, grads, key[1]))
        asked = [grad if want else None for grad, want in zip(grads, wanted, strict=False)]
        return dx, None, *asked, *[None] * (len(inputs) - count)


def forward(
    ready: Ready,
    running: Averages,
    x: Tensor,
    y: Tensor,
    inputs: Sequence[Tensor],
    counters: Sequence[Tensor],
    run: Launch,
    views: Sequence[Sequence[Tensor]],
) -> None:
    """Fills in the normalized x, and what the backward pass needs; updates the running averages in training.

    Args:
        counters: see Ready.
        views: the tensors in memory of `ready.kept` and of `ready.forward_work`.
    """
    small, blocks, parameters = ready.small, ready.blocks, by_name(ready.small, inputs)
    kept, (shift, parts) = Kept(*views[0]), views[1]
    launch_moments(blocks, x, kept.statistics, parts, counters[0] if counters else None, run)
    pool(ready, kept.statistics, running, run)
    run(
        forward_kernels.coefficients,
        (small.samples,),
        *(kept.statistics, running[2] if running and BATCH in small.kinds else None),
        *(parameters.weight, parameters.bias, parameters.kernel, *parameters.gate),
        *(parameters.logits, parameters.var_logits, kept.ratios, kept.z, kept.v, kept.hidden, kept.arrived),
        *(kept.scale, shift),
        *(small.packed, small.samples, small.channels, small.groups, small.reduced, small.units),
        **small.for_coefficients,
    )
    run(
        pass_kernels.affine,
        (blocks.programs,),
        *(x, y, kept.statistics, kept.scale, shift, *blocks.sizes),
        **blocks.constants,
    )


def pool(ready: Ready, statistics: Tensor, running: Averages, run: Launch) -> None:
    """Statistics of bn, ln and gn, and the running averages."""
    small = ready.small
    pooling = small.for_pool
    if 0 in pooling.grid:
        return
    run(
        forward_kernels.pool,
        pooling.grid,
        *(statistics, *(running or (None, None, None))),
        *(small.samples, small.channels, small.groups, small.pixels),
        MOMENTUM=ready.momentum,
        **pooling.constants,
    )


def backward(
    ready: Ready,
    x: Tensor,
    dy: Tensor,
    dx: Tensor | None,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    for_ratios: bool,
    run: Launch,
    views: Sequence[Sequence[Tensor]],
) -> None:
    """Fills in dX, where it is wanted, and the gradients of the parameters, of the ratios' where they are wanted.

    Args:
        views: the tensors in memory of `ready.kept` and of `ready.backward_work`.
    """
    small, blocks, n = ready.small, ready.blocks, ready.small.samples
    parameters, grads = by_name(small, inputs), by_name(small, outputs)
    kept, (sums, parts, d_logits, d_hidden, d_v, means) = Kept(*views[0]), views[1]
    sizes = (small.packed, n, small.channels, small.groups)
    w1, _, w2, _ = parameters.gate
    whole = blocks.splits == 1
    run(
        backward_kernels.layer_sums,
        (blocks.programs,),
        *(dy, x, kept.statistics, sums if whole else parts, sums, kept.arrived, parameters.weight, w1, w2),
        *(kept.ratios, kept.hidden, d_logits, d_hidden, d_v, *blocks.sizes, *sizes, small.units),
        **blocks.constants,
        **small.for_sums,
        WHOLE=whole,
        FOR_RATIOS=for_ratios or RATIOS[small.source] != "static",
    )
    pooling = small.for_pool_gradients(for_ratios)
    of_cells = (parameters.weight, parameters.kernel, kept.ratios, kept.z, d_v, means)
    run(
        backward_kernels.pool_gradients,
        pooling.grid,
        *(kept.statistics, sums, *of_cells, grads.weight, grads.bias, grads.kernel),
        *(kept.v, kept.hidden, d_hidden, d_logits, *grads.gate, grads.logits, grads.var_logits),
        *(*sizes, small.reduced, small.units),
        **pooling.constants,
        warps=8,
    )
    if dx is None:
        return
    run(
        backward_kernels.layer_input_gradient,
        (blocks.programs,),
        *(dy, x, dx, kept.statistics, sums, kept.scale, *of_cells, *blocks.sizes, *sizes, small.reduced),
        **blocks.constants,
        **small.formula,
    )
