"""The small part of a layer on a GPU: how large it is, and what its kernels are compiled for."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from en.norm.kernels.gpu.blocks import PARTS, Blocks, ceil_div, power_of_two
from en.norm.kernels.plan import ACTIVATIONS, RATIOS, NativePlan

INSTANCE, RUNNING, BATCH, LAYER, GROUP = range(5)
CELLS, GRADIENT_CELLS = 512, 256
"""Cells of (N, C) in a tile of the small part, forward and backward, where more of them run out of registers."""

SAMPLES = 32
"""Samples at a time in the sums of the gate's gradients."""

GATE_UNITS = 8
"""Hidden units of which a program has the gradients."""

ALIGNED = 64
"""Values to a multiple of which the beginnings of tensors in one block are rounded: 256 bytes of float32."""

UNITS = 64
"""Hidden units at a time for each sample."""


@dataclass(frozen=True)
class Small:
    """A layer's small part: its sizes and how its kernels are to be made.

    Attributes:
        samples, channels, pixels: N, C and H W.
        kinds: of the statistics, in the order of the ratios.
        absent: place of that whose ratio is 0, or -1.
        groups: of gn.
        source, relu, mix_statistics, affine_rows, eps, gate_scale: as NativePlan's, by number.
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
    gate_scale: float
    reduced: int
    units: int
    apart: bool

    @cached_property
    def rows(self) -> int:
        return power_of_two(len(self.kinds))

    @cached_property
    def formula(self) -> dict[str, Any]:
        """Collects what the kernels of the small part are compiled for."""
        return {
            "K": len(self.kinds),
            "ROWS": self.rows,
            "SOURCE": self.source,
            "MIX_STATISTICS": self.mix_statistics,
            "AFFINE_ROWS": self.affine_rows,
            "EPS": self.eps,
        }

    @cached_property
    def packed(self) -> int:
        """Its kinds as one number."""
        return packed(self.kinds)

    @cached_property
    def for_coefficients(self) -> dict[str, Any]:
        """Constants of the kernel `coefficients`."""
        size = self.channels // self.reduced
        block = min(power_of_two(size), CELLS)
        return self.formula | {
            "ABSENT": self.absent,
            "RELU": self.relu,
            "GATE_SCALE": self.gate_scale,
            "COUNT": BATCH in self.kinds,
            "CHANNELS": self.channel_block(CELLS),
            "UNITS": self.unit_block,
            "GROUPS": min(power_of_two(self.reduced), CELLS // block),
            "SIZE": block,
        }

    @cached_property
    def for_pool(self) -> "Pooling":
        return Pooling.of(self, [kind for kind in self.kinds if kind != INSTANCE], CELLS)

    @cached_property
    def for_sums(self) -> dict[str, Any]:
        """Constants of the kernel `layer_sums`, besides those of its tiles."""
        blocks = {"CHANNELS": self.channel_block(GRADIENT_CELLS), "UNITS": self.unit_block, "PARTS": PARTS}
        ratios = {"RELU": self.relu, "GATE_SCALE": self.gate_scale, "APART": self.apart}
        return self.formula | ratios | blocks

    def for_pool_gradients(self, for_ratios: bool) -> "Pooling":
        """How the kernel `pool_gradients` is launched, with or without the gradients of what the ratios come from."""
        return self._pool_gradients[for_ratios]

    @cached_property
    def _pool_gradients(self) -> tuple["Pooling", "Pooling"]:
        pooling = Pooling.of(self, [BATCH, *(kind for kind in self.kinds if kind in (LAYER, GROUP))], GRADIENT_CELLS)
        units = min(GATE_UNITS, power_of_two(max(1, self.units)))
        static = RATIOS[self.source] == "static"
        ratio_blocks = (2 if self.apart else 1) if static else ceil_div(self.units, units)
        ratios = {
            "GATE_SCALE": self.gate_scale,
            "SAMPLES": min(SAMPLES, power_of_two(self.samples)),
            "UNITS": units,
            "INPUTS": power_of_two(len(self.kinds) ** 2),
        }
        blocks, kinds = pooling.grid
        constants = self.formula | pooling.constants | ratios
        return (
            Pooling(pooling.grid, constants | {"RATIO_BLOCKS": 0}),
            Pooling((max(blocks, ratio_blocks), kinds + 1), constants | {"RATIO_BLOCKS": ratio_blocks}),
        )

    def channel_block(self, cells: int) -> int:
        return min(cells, power_of_two(self.channels))

    @cached_property
    def unit_block(self) -> int:
        """Hidden units at a time."""
        return min(UNITS, power_of_two(max(1, self.units)))

    @cached_property
    def kept(self) -> "Memory":
        """Lays out what the forward pass leaves to the backward one: the parts of Kept."""
        n, k = self.samples, len(self.kinds)
        correlated = RATIOS[self.source] == "correlation"
        cells, squares = (n, self.channels), (n, k, k if correlated else 0)
        groups = (n, k, self.reduced if correlated else 0)
        return Memory.of((self.buffer(4),), cells, (2, n, k), groups, squares, (n, self.units), (n,), counters=n)

    def forward_work(self, blocks: Blocks) -> "Memory":
        """Lays out what the forward pass needs for itself: shift, and parts of cut cells."""
        return Memory.of((self.samples, self.channels), blocks.parts_shape)

    def backward_work(self, blocks: Blocks) -> "Memory":
        """Lays out what the backward pass needs for itself.

        They are the sums of cells, parts of cut ones, gradients of logits, hidden units and v, and means over sets.
        """
        _, _, ratios, _, v, hidden, _ = self.kept.shapes
        return Memory.of((2, self.samples, self.channels), blocks.parts_shape, ratios, hidden, v, (self.buffer(0),))

    def buffer(self, cell_rows: int) -> int:
        """Values in a buffer of statistics or of means of gradients: see sets.py."""
        cells = cell_rows * self.samples * self.channels
        return cells + 2 * (self.channels + self.samples * (1 + self.groups))


@dataclass(frozen=True)
class Memory:
    """Tensors of one type that lie in one block of memory, each at a multiple of ALIGNED values.

    Attributes:
        shapes, starts: of the tensors.
        size: values of the block.
        counters: 32-bit integers in the last of them, which has as many values; 0 where it is one like the others.
    """

    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    size: int
    counters: int

    @classmethod
    def of(cls, *shapes: tuple[int, ...], counters: int = 0) -> "Memory":
        ends = itertools.accumulate(ALIGNED * ceil_div(math.prod(shape), ALIGNED) for shape in shapes)
        starts = (0, *ends)
        return cls(shapes, starts[:-1], starts[-1], counters)

    def views(self, block: Tensor) -> list[Tensor]:
        """The tensors in a block (size)."""
        places = zip(self.shapes, self.starts, strict=True)
        found = [block[start : start + math.prod(shape)].view(shape) for shape, start in places]
        if self.counters:
            found[-1] = found[-1].view(torch.int32)[: self.counters]
        return found


@dataclass(frozen=True)
class Pooling:
    """How sums over sets of cells are cut into programs.

    Attributes:
        grid: blocks of sets, kinds.
        constants: kinds and tiles, of members x sets for each.
    """

    grid: tuple[int, int]
    constants: dict[str, Any]

    @classmethod
    def of(cls, small: Small, kinds: list[int], cells: int) -> "Pooling":
        tiles, blocks = set_blocks(small.samples, small.channels, small.groups, cells)
        grid = max((blocks[kind] for kind in kinds), default=0), len(kinds)
        return cls(grid, {"POOLS": packed(kinds), "COUNT": len(kinds), **tiles})


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
        gate_scale=plan.gate_scale,
        reduced=plan.reduced,
        units=0 if static else plan.parameters[-4].shape[0],
        apart=static and len(plan.parameters) > 3,
    )
