"""How a pass over (N, C, H, W) is cut into programs of a GPU: a pure function of shape, layout and type.

A pass walks over tiles of CELLS x PIXELS values, a cell being one channel of one sample. In memory the cells of NCHW
are rows of H W pixels, N C of them. In channels_last a sample is H W rows of C cells. Nothing is timed or tried out
when a network runs: the same shape gives the same order of summation, hence the same bits, and no waiting on the GPU.
"""

import functools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TILE = 2048
"""Values in a tile: 16 a thread, two loads of 16 bytes for half types and four for float32; of float64 half as many."""

PROGRAMS = 4096
"""How many programs a pass is cut into where the pixels allow: 132 processors hold about 800 of them at once."""

TILES_EACH = 4
"""The fewest tiles that a program of a cut cell takes, lest what it leaves to be merged exceed 6 % of what it read."""

MOST_CELLS = 128
"""The most cells in a tile, for each of which a layer's last kernel holds some values of every normalizer."""

SPLITS = 256
"""The most parts that a cell is cut into, all of which one program merges."""

PARTS = 8
"""How many of them it takes at a time."""


@dataclass(frozen=True)
class Blocks:
    """The programs of a pass.

    Attributes:
        channels_last: the layout; else NCHW.
        outer, cells: samples and channels in channels_last, 1 and N C in NCHW.
        pixels: H W.
        unit: the largest power of two, up to 16, that divides the axis that is contiguous in memory.
        cell_block, pixel_block: the tile's sizes, powers of two.
        cell_blocks: blocks of cells a sample of channels_last, or all of NCHW, has.
        splits: parts that a cell's pixels are cut into.
        tiles: tiles a program walks over.
    """

    channels_last: bool
    outer: int
    cells: int
    pixels: int
    unit: int
    cell_block: int
    pixel_block: int
    cell_blocks: int
    splits: int
    tiles: int

    @property
    def programs(self) -> int:
        return self.outer * self.splits * self.cell_blocks

    @property
    def parts_shape(self) -> tuple[int, ...]:
        """Shape of what the programs leave to be merged: two values each of cells that are cut."""
        return (2, self.splits, self.outer * self.cells) if self.splits > 1 else (0,)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Arguments of every kernel that walks over tiles: runs, other, total, cell_blocks, splits, tiles."""
        contiguous, other = (self.cells, self.pixels) if self.channels_last else (self.pixels, self.cells)
        total = self.outer * self.cells
        return contiguous // self.unit, other, total, self.cell_blocks, self.splits, self.tiles

    @cached_property
    def constants(self) -> dict[str, int]:
        """Constants of every such kernel."""
        tile = {"CELLS": self.cell_block, "PIXELS": self.pixel_block}
        return {"CHANNELS_LAST": self.channels_last, "UNIT": self.unit, **tile}


def blocks_for(x: Tensor) -> Blocks:
    """The programs for a dense x, NCHW or channels_last."""
    n, c, h, w = x.shape
    return cut(n, c, h * w, not x.is_contiguous(), TILE // 2 if x.dtype == torch.float64 else TILE)


@functools.lru_cache(maxsize=4096)
def cut(samples: int, channels: int, pixels: int, channels_last: bool, tile: int = TILE) -> Blocks:
    """The programs for a shape, in tiles of at most `tile` values."""
    outer, cells = (samples, channels) if channels_last else (1, samples * channels)
    if channels_last:
        cell_block = min(power_of_two(cells), MOST_CELLS)
        pixel_block = min(power_of_two(pixels), tile // cell_block)
    else:
        pixel_block = min(power_of_two(pixels), 512)
        cell_block = min(power_of_two(cells), MOST_CELLS, tile // pixel_block)
    cell_blocks = ceil_div(cells, cell_block)
    tiles = ceil_div(pixels, pixel_block)
    wanted = min(ceil_div(PROGRAMS, outer * cell_blocks), SPLITS)
    tiles_each = max(ceil_div(tiles, wanted), min(tiles, TILES_EACH))
    return Blocks(
        channels_last=channels_last,
        outer=outer,
        cells=cells,
        pixels=pixels,
        unit=math.gcd(cells if channels_last else pixels, 16),
        cell_block=cell_block,
        pixel_block=pixel_block,
        cell_blocks=cell_blocks,
        splits=ceil_div(tiles, tiles_each),
        tiles=tiles_each,
    )


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
