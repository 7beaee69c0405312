"""A whole layer on a GPU: at most 5 launches forward and 7 backward, of which two each way read X.

    forward    moments (its parts merged), pool, coefficients, affine
    backward   gradient_sums (its parts merged), ratio_gradients, pool_gradients, gate_gradients or logit_gradients,
               moment_gradients, input_gradient

Only X and what is (N, C) or smaller is kept in between. Nothing waits for the GPU, and memory comes from torch.empty
alone, so that CUDA graphs can record it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels.again import Again
from en.norm.kernels.gpu import backward_kernels, forward_kernels, passes
from en.norm.kernels.gpu.blocks import ceil_div, power_of_two
from en.norm.kernels.gpu.passes import launch, on_device_of
from en.norm.kernels.passes import dense
from en.norm.kernels.plan import ACTIVATIONS, RATIOS, NativePlan
from en.norm.statistics import moments_dtype

INSTANCE, RUNNING, BATCH, LAYER, GROUP = range(5)
CELLS, GRADIENT_CELLS = 512, 256
"""Cells of (N, C) in a tile of the small part, forward and backward, where more of them run out of registers."""

SAMPLES, UNITS = 32, 64
"""Samples at a time in the sums of the gate's gradients, and hidden units at a time for each sample."""


@dataclass(frozen=True)
class Small:
    """A layer's small part: its sizes and how its kernels are to be made.

    Attributes:
        samples, channels, pixels: N, C and H W.
        kinds: of the statistics, in the order of the ratios.
        absent: place of that whose ratio is 0, or -1.
        groups: of gn.
        source, relu, mix_statistics, affine_rows, eps: as NativePlan's, by number.
        reduced: G, groups of the convolution.
        units: hidden units of the gate.
        apart: whether the variances have logits of their own.
    """

    samples: int
    channels: int
    pixels: int
    kinds: tuple[int, ...]
    absent: int
    groups: int
    source: int
    relu: bool
    mix_statistics: bool
    affine_rows: int
    eps: float
    reduced: int
    units: int
    apart: bool

    @property
    def rows(self) -> int:
        return power_of_two(len(self.kinds))

    @property
    def formula(self) -> dict[str, Any]:
        """What the kernels of the small part are compiled for."""
        return {
            "K": len(self.kinds),
            "ROWS": self.rows,
            "SOURCE": self.source,
            "MIX_STATISTICS": self.mix_statistics,
            "AFFINE_ROWS": self.affine_rows,
            "EPS": self.eps,
        }

    def channel_block(self, cells: int) -> int:
        return min(cells, power_of_two(self.channels))

    @property
    def unit_block(self) -> int:
        """Hidden units at a time: few, where each takes a block of channels."""
        return min(UNITS // 8 if self.source == RATIOS.index("pooled") else UNITS, power_of_two(max(1, self.units)))

    def buffer(self, cell_rows: int) -> int:
        """Values in a buffer of statistics or their gradients."""
        cells = cell_rows * self.samples * self.channels
        return cells + 2 * (self.channels + self.samples * (1 + self.groups))


@functools.lru_cache(maxsize=4096)
def set_blocks(samples: int, channels: int, groups: int, cells: int) -> tuple[dict[str, int], dict[int, int]]:
    """Tiles of members x sets of bn, ln and gn, and how many blocks of sets each kind has."""
    members = {BATCH: samples, LAYER: channels, GROUP: channels // groups}
    sets = {BATCH: channels, LAYER: samples, GROUP: samples * groups}
    tiles: dict[str, int] = {}
    blocks: dict[int, int] = {}
    for kind, name in ((BATCH, ""), (LAYER, "LAYER_"), (GROUP, "GROUP_")):
        height = min(power_of_two(members[kind]), cells // 8 if kind == BATCH else cells)
        width = min(power_of_two(sets[kind]), cells // height, 8 if kind == BATCH else cells)
        tiles |= {f"{name}MEMBERS": height, f"{name}SETS": width}
        blocks[kind] = ceil_div(sets[kind], width)
    return tiles, blocks | {RUNNING: blocks[BATCH]}


def packed(kinds: list[int] | tuple[int, ...]) -> int:
    """Kinds of statistics, three bits each."""
    return sum(kind << (3 * i) for i, kind in enumerate(kinds))


def small_of(plan: NativePlan, x: Tensor) -> Small:
    """The sizes of a layer's small part on x."""
    numbers = {"bn": BATCH if plan.training else RUNNING, "in": INSTANCE, "ln": LAYER, "gn": GROUP}
    kinds = tuple(numbers[name] for name in plan.normalizers)
    static = plan.ratios == "static"
    return Small(
        samples=x.shape[0],
        channels=x.shape[1],
        pixels=x.shape[2] * x.shape[3],
        kinds=kinds,
        absent=plan.absent,
        groups=plan.groups,
        source=RATIOS.index(plan.ratios),
        relu=plan.activation == ACTIVATIONS[1],
        mix_statistics=plan.mix_statistics,
        affine_rows=1 if plan.mix_statistics or plan.parameters[0].numel() == x.shape[1] else len(kinds),
        eps=plan.eps,
        reduced=plan.reduced,
        units=0 if static else plan.parameters[-4].shape[0],
        apart=static and len(plan.parameters) > 3,
    )


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
    match RATIOS[small.source]:
        case "static":
            return Parameters(weight, bias, logits=rest[0], var_logits=rest[-1])
        case "pooled":
            return Parameters(weight, bias, gate=tuple(rest))
    return Parameters(weight, bias, rest[0], tuple(rest[1:]))


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of the forward one, besides x and the parameters.

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
    passes.moments(x, kept.stats(small))
    pool(plan, small, kept.statistics)
    shift = torch.empty_like(kept.scale)
    training = BATCH in small.kinds
    size = small.channels // small.reduced
    block = min(power_of_two(size), CELLS)
    launch(
        forward_kernels.coefficients,
        (small.samples,),
        *(kept.statistics, plan.running[2] if plan.running and training else None),
        *(parameters.weight, parameters.bias, parameters.kernel, *parameters.gate),
        *(parameters.logits, parameters.var_logits, kept.ratios, kept.z, kept.v, kept.hidden, kept.scale, shift),
        *(packed(small.kinds), small.samples, small.channels, small.groups, small.reduced, small.units),
        **small.formula,
        ABSENT=small.absent,
        RELU=small.relu,
        COUNT=training,
        CHANNELS=small.channel_block(CELLS),
        UNITS=small.unit_block,
        GROUPS=min(power_of_two(small.reduced), CELLS // block),
        SIZE=block,
    )
    return passes.affine(x, kept.stats(small), kept.scale, shift), kept


def pool(plan: NativePlan, small: Small, statistics: Tensor) -> None:
    """Statistics of bn, ln and gn, and the running averages."""
    kinds = [kind for kind in small.kinds if kind != INSTANCE]
    if not kinds:
        return
    tiles, blocks = set_blocks(small.samples, small.channels, small.groups, CELLS)
    launch(
        forward_kernels.pool,
        (max(blocks[kind] for kind in kinds), len(kinds)),
        *(statistics, *(plan.running or (None, None, None))),
        *(small.samples, small.channels, small.groups, small.pixels),
        POOLS=packed(kinds),
        COUNT=len(kinds),
        MOMENTUM=plan.momentum,
        **tiles,
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
            *(kept.statistics, sums, parameters.weight, w1, w2, kept.ratios, kept.hidden, d_logits, d_hidden, d_v),
            *(packed(small.kinds), *sizes, small.units),
            **small.formula,
            RELU=small.relu,
            APART=small.apart,
            CHANNELS=small.channel_block(CELLS),
            UNITS=small.unit_block,
        )
    kinds = [BATCH] + [kind for kind in small.kinds if kind in (LAYER, GROUP)]
    tiles, blocks = set_blocks(*sizes, GRADIENT_CELLS)
    cells = (kept.statistics, sums, parameters.weight, parameters.kernel, kept.ratios, kept.z, d_v, d_statistics)
    launch(
        backward_kernels.pool_gradients,
        (max(blocks[kind] for kind in kinds), len(kinds)),
        *(*cells, grads.weight, grads.bias, grads.kernel),
        *(packed(small.kinds), *sizes, small.reduced),
        **small.formula,
        POOLS=packed(kinds),
        COUNT=len(kinds),
        **tiles,
        warps=8,
    )
    if for_ratios:
        gate_gradients(small, kept, grads, d_logits, d_hidden)
    if not for_input:
        return None
    launch(
        backward_kernels.moment_gradients,
        (small.samples, ceil_div(small.channels, small.channel_block(GRADIENT_CELLS))),
        *(*cells, d_hidden, w1, packed(small.kinds), *sizes, small.reduced, small.units),
        **small.formula,
        CHANNELS=small.channel_block(GRADIENT_CELLS),
        UNITS=small.unit_block,
    )
    d_mean, d_var = d_statistics[: 2 * sums[0].numel()].view_as(sums)
    return passes.input_gradient(dy, x, stats, sums[0], kept.scale, d_mean, d_var)


def gate_gradients(small: Small, kept: Kept, grads: Parameters, d_logits: Tensor, d_hidden: Tensor) -> None:
    """Gradients of what the ratios come from, summed over the samples."""
    ratios = {"K": len(small.kinds), "ROWS": small.rows, "SAMPLES": min(SAMPLES, power_of_two(small.samples))}
    if grads.logits is not None:
        sets = 2 if small.apart else 1
        launch(
            backward_kernels.logit_gradients, (sets,), d_logits, grads.logits, grads.var_logits, small.samples, **ratios
        )
        return
    pooled = small.source == RATIOS.index("pooled")
    width = small.channels if pooled else len(small.kinds) ** 2
    inputs = kept.statistics if pooled else kept.v
    units, block = min(8, power_of_two(small.units)), min(16, power_of_two(width))
    launch(
        backward_kernels.gate_gradients,
        (ceil_div(small.units, units), ceil_div(width, block)),
        *(inputs, kept.hidden, d_hidden, d_logits, *grads.gate, small.samples, small.units, width),
        **ratios,
        UNITS=units,
        INPUTS=block,
    )
