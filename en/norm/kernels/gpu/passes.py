"""The four passes of ../passes.py as launches of Triton's kernels, which nothing waits for and graphs can record."""

from typing import Any

import torch
from torch import Tensor

from en.norm.kernels.gpu import pass_kernels
from en.norm.kernels.gpu.blocks import TILE, Blocks, blocks_for, ceil_div, power_of_two
from en.norm.kernels.gpu.launches import launch, on_device_of
from en.norm.statistics import moments_dtype


def moments(x: Tensor, stats: Tensor | None = None) -> Tensor:
    """`stats` (4, N, C) of a dense x, into the given memory if any."""
    blocks, total = blocks_for(x), x.shape[0] * x.shape[1]
    if stats is None:
        stats = x.new_empty((4, *x.shape[:2]), dtype=moments_dtype(x.dtype))
    whole = blocks.splits == 1
    out = stats if whole else stats.new_empty((2, blocks.splits, total))
    with on_device_of(x):
        over_tiles(pass_kernels.moments, blocks, x, out, warps=2 if blocks.channels_last else 4, WHOLE=whole)
        if not whole:
            splits = power_of_two(blocks.splits)
            cells = TILE // splits
            launch(
                pass_kernels.merge_moments,
                (ceil_div(total, cells),),
                *(x, out, stats, blocks.cells, blocks.pixels, total, blocks.splits, blocks.tiles * blocks.pixel_block),
                CHANNELS_LAST=blocks.channels_last,
                CELLS=cells,
                SPLITS=splits,
            )
    return stats


def affine(x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    with on_device_of(x):
        over_tiles(pass_kernels.affine, blocks_for(x), x, y, stats, scale, shift)
    return y


def gradient_sums(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    blocks, total = blocks_for(x), x.shape[0] * x.shape[1]
    sums = stats.new_empty((2, *x.shape[:2]))
    out = sums if blocks.splits == 1 else stats.new_empty((2, blocks.splits, total))
    with on_device_of(x):
        over_tiles(pass_kernels.gradient_sums, blocks, dy, x, stats, out)
        if out is not sums:
            splits = power_of_two(blocks.splits)
            cells = TILE // splits
            launch(
                pass_kernels.merge_sums,
                (ceil_div(total, cells), 2),
                *(out, sums, total, blocks.splits),
                CELLS=cells,
                SPLITS=splits,
            )
    return sums


def input_gradient(
    dy: Tensor, x: Tensor, stats: Tensor, sum_dy: Tensor, scale: Tensor, d_mean: Tensor, d_var: Tensor
) -> Tensor:
    dx = torch.empty_like(x)
    with on_device_of(x):
        over_tiles(pass_kernels.input_gradient, blocks_for(x), dy, x, dx, stats, sum_dy, scale, d_mean, d_var)
    return dx


def over_tiles(kernel: Any, blocks: Blocks, *tensors: Tensor, warps: int = 4, **constants: bool) -> None:
    """Launches a pass over all tiles."""
    contiguous, other = (blocks.cells, blocks.pixels) if blocks.channels_last else (blocks.pixels, blocks.cells)
    launch(
        kernel,
        (blocks.programs,),
        *tensors,
        *(
            contiguous // blocks.unit,
            other,
            blocks.outer * blocks.cells,
            blocks.cell_blocks,
            blocks.splits,
            blocks.tiles,
        ),
        CHANNELS_LAST=blocks.channels_last,
        UNIT=blocks.unit,
        CELLS=blocks.cell_block,
        PIXELS=blocks.pixel_block,
        warps=warps,
        **constants,
    )
