"""The four passes of ../passes.py as launches of Triton's kernels, which nothing waits for and graphs can record."""

import torch
from torch import Tensor

from en.norm.kernels.gpu import pass_kernels
from en.norm.kernels.gpu.blocks import PARTS, TILE, Blocks, blocks_for, ceil_div, power_of_two
from en.norm.kernels.gpu.launches import Launch, launch, on_device_of
from en.norm.statistics import moments_dtype


def moments(x: Tensor) -> Tensor:
    """`stats` (4, N, C) of a dense x."""
    blocks, total = blocks_for(x), x.shape[0] * x.shape[1]
    stats = x.new_empty((4, *x.shape[:2]), dtype=moments_dtype(x.dtype))
    parts = stats.new_empty(blocks.parts_shape)
    with on_device_of(x):
        launch_moments(blocks, x, stats, parts, None, launch)
        if blocks.splits > 1:
            splits = power_of_two(blocks.splits)
            cells = TILE // splits
            launch(
                pass_kernels.merge_moments,
                (ceil_div(total, cells),),
                *(x, parts, stats, blocks.cells, blocks.pixels, total, blocks.splits),
                blocks.tiles * blocks.pixel_block,
                CHANNELS_LAST=blocks.channels_last,
                CELLS=cells,
                SPLITS=splits,
            )
    return stats


def launch_moments(
    blocks: Blocks, x: Tensor, stats: Tensor, parts: Tensor, arrived: Tensor | None, run: Launch
) -> None:
    """Fills in `stats`; of cells that are cut, `parts` first, and `stats` only with counters of what has arrived."""
    whole = blocks.splits == 1
    run(
        pass_kernels.moments,
        (blocks.programs,),
        *(x, stats if whole else parts, stats, None if whole else arrived, *blocks.sizes),
        **blocks.constants,
        warps=2 if blocks.channels_last else 4,
        WHOLE=whole,
        PARTS=PARTS,
    )


def affine(x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y, blocks = torch.empty_like(x), blocks_for(x)
    with on_device_of(x):
        launch(
            pass_kernels.affine,
            (blocks.programs,),
            *(x, y, stats, scale, shift, *blocks.sizes),
            **blocks.constants,
        )
    return y


def gradient_sums(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    blocks, total = blocks_for(x), x.shape[0] * x.shape[1]
    sums = stats.new_empty((2, *x.shape[:2]))
    out = sums if blocks.splits == 1 else stats.new_empty(blocks.parts_shape)
    with on_device_of(x):
        launch(
            pass_kernels.gradient_sums,
            (blocks.programs,),
            *(dy, x, stats, out, *blocks.sizes),
            **blocks.constants,
        )
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
    dx, blocks = torch.empty_like(x), blocks_for(x)
    with on_device_of(x):
        launch(
            pass_kernels.input_gradient,
            (blocks.programs,),
            *(dy, x, dx, stats, sum_dy, scale, d_mean, d_var, *blocks.sizes),
            **blocks.constants,
        )
    return dx
