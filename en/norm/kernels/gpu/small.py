"""The small part of a layer on a GPU: how large it is, and what its kernels are compiled for."""

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from en.norm.kernels.gpu.blocks import ceil_div, power_of_two
from en.norm.kernels.plan import ACTIVATIONS, RATIOS, NativePlan

INSTANCE, RUNNING, BATCH, LAYER, GROUP = range(5)
CELLS, GRADIENT_CELLS = 512, 256
"""Cells of (N, C) in a tile of the small part, forward and backward, where more of them run out of registers."""

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
    def for_ratio_gradients(self) -> dict[str, Any]:
        """Constants of the kernel `ratio_gradients`."""
        blocks = {"CHANNELS": self.channel_block(CELLS), "UNITS": self.unit_block}
        ratios = {"RELU": self.relu, "GATE_SCALE": self.gate_scale, "APART": self.apart}
        return self.formula | ratios | blocks

    @cached_property
    def for_moment_gradients(self) -> dict[str, Any]:
        """Constants of the kernel `moment_gradients`."""
        return self.formula | {"CHANNELS": self.channel_block(GRADIENT_CELLS)}

    @cached_property
    def for_pool_gradients(self) -> "Pooling":
        return Pooling.of(self, [BATCH, *(kind for kind in self.kinds if kind in (LAYER, GROUP))], GRADIENT_CELLS)

    def channel_block(self, cells: int) -> int:
        return min(cells, power_of_two(self.channels))

    @cached_property
    def unit_block(self) -> int:
        """Hidden units at a time."""
        return min(UNITS, power_of_two(max(1, self.units)))

    def buffer(self, cell_rows: int) -> int:
        """Values in a buffer of statistics or their gradients."""
        cells = cell_rows * self.samples * self.channels
        return cells + 2 * (self.channels + self.samples * (1 + self.groups))


@dataclass(frozen=True)
class Pooling:
    """How sums over sets of cells are cut into programs.

    Attributes:
        grid: blocks of sets, kinds.
        constants: kinds and tiles, of members x sets for each.
    """

    grid: tuple[int, int]
    constants: dict[str, int]

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
    small = Small(
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
    return first_of_its_kind(small)


@functools.lru_cache(maxsize=4096)
def first_of_its_kind(small: Small) -> Small:
    """Returns the first of those that are equal, which has what follows from it already."""
    return small
