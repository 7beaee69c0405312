"""The four passes over (N, C, H, W) as Triton kernels: ../passes.py says what they compute, blocks.py how they are cut.

Every kernel takes the layout as `runs * UNIT`, the length of the axis that is contiguous in memory: the product tells
the compiler that rows begin at multiples of UNIT values, so that it loads them 16 bytes at a time. Where a tile begins
is counted in 64 bits, what lies inside it in 32.
"""

import triton
import triton.language as tl


@triton.jit
def sizes(runs, other, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr):
    """Cells and pixels of a sample of channels_last, or of all of NCHW."""
    contiguous = runs * UNIT
    if CHANNELS_LAST:
        cells = contiguous
        pixels = other
    else:
        cells = other
        pixels = contiguous
    return cells, pixels


@triton.jit
def place(cell_blocks, splits, cells, CELLS: tl.constexpr):
    """This program's sample (0 in NCHW), first cell and part of the pixels; its cells' numbers, and which exist."""
    program = tl.program_id(0)
    first = tl.cast(program % cell_blocks, tl.int64) * CELLS
    split = (program // cell_blocks) % splits
    outer = tl.cast(program // cell_blocks // splits, tl.int64)
    cell = first + tl.arange(0, CELLS)
    return outer, first, split, outer * cells + cell, cell < cells


@triton.jit
def origin(outer, first_cell, first_pixel, cells, pixels, CHANNELS_LAST: tl.constexpr):
    """How far from the first value of x a tile's first value lies."""
    pixel = tl.cast(first_pixel, tl.int64)
    if CHANNELS_LAST:
        at = (outer * pixels + pixel) * cells + first_cell
    else:
        at = first_cell * pixels + pixel
    return at


@triton.jit
def inside_tile(cells, pixels, CELLS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(CELLS, PIXELS): how far from the tile's first value each of its values lies."""
    cell = tl.arange(0, CELLS)[:, None]
    pixel = tl.arange(0, PIXELS)[None, :]
    if CHANNELS_LAST:
        at = pixel * cells + cell
    else:
        at = cell * pixels + pixel
    return at


@triton.jit
def merged(count, mean, squares, AXIS: tl.constexpr):
    """Mean and sum of squares about it of the union of sets along an axis, of `count` values each."""
    total = tl.sum(count + 0 * mean, AXIS)
    pooled = tl.sum(count * mean, AXIS) / total
    distance = mean - tl.expand_dims(pooled, AXIS)
    return pooled, tl.sum(squares + count * distance * distance, AXIS)


@triton.jit
def store_stats(stats, total, index, used, first, mean, squares, pixels):
    """m, s, a centre and m minus the centre, of a mean counted from a first value: the centre is the rounded sum."""
    centre = first + mean
    tl.store(stats + index, centre, mask=used)
    tl.store(stats + total + index, squares / pixels, mask=used)
    tl.store(stats + 2 * total + index, centre, mask=used)
    tl.store(stats + 3 * total + index, mean - (centre - first), mask=used)


@triton.jit
def merged_parts(
    parts, index, used, pixels, total, splits, length, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squares about it, (CELLS), of cells in parts of `length` pixels, the last of them fewer."""
    A: tl.constexpr = parts.dtype.element_ty
    means = parts + index[None, :]
    spreads = means + tl.cast(splits, tl.int64) * total
    part = tl.arange(0, PARTS)[:, None]
    sums = tl.zeros([PARTS, CELLS], A)
    for start in range(0, splits, PARTS):
        split = tl.cast(start + part, tl.int64)
        valid = used[None, :] & (split < splits)
        seen = tl.minimum(tl.maximum(pixels - split * length, 0), length).to(A)
        sums += seen * tl.load(means + split * total, mask=valid, other=0)
    pooled = tl.sum(sums, 0) / pixels
    squares = tl.zeros([PARTS, CELLS], A)
    for start in range(0, splits, PARTS):
        split = tl.cast(start + part, tl.int64)
        valid = used[None, :] & (split < splits)
        seen = tl.minimum(tl.maximum(pixels - split * length, 0), length).to(A)
        distance = tl.load(means + split * total, mask=valid, other=0) - pooled[None, :]
        squares += seen * distance * distance + tl.load(spreads + split * total, mask=valid, other=0)
    return pooled, tl.sum(squares, 0)


@triton.jit
def moments(
    x, out, stats, arrived, runs, other, total, cell_blocks, splits, tiles,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr, WHOLE: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """`stats` (4, N, C) where a program sees WHOLE cells; else means and squares of parts, (2, splits, N, C), in `out`.

    With `arrived`, zeros and zeros again afterwards, one for each block of cells, the last program of a block merges
    its parts. Which one that is is chance; what it adds up, and in which order, is not.
    Every place of the tile takes Welford's mean and squares of the pixels it sees, counted from the cell's first.
    """
    # m = sum X / (H W),  s = sum (X - m)^2 / (H W)
    A: tl.constexpr = stats.dtype.element_ty
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    start = split * tiles * PIXELS
    steps = inside_tile(cells, pixels, CELLS, PIXELS, CHANNELS_LAST)
    head = x + origin(outer, first_cell, 0, cells, pixels, CHANNELS_LAST)
    edge = tl.arange(0, CELLS) * (1 if CHANNELS_LAST else pixels)
    first = tl.load(head + edge, mask=used, other=0).to(A)
    lane = tl.arange(0, PIXELS)
    mean = tl.zeros([CELLS, PIXELS], A)
    squares = tl.zeros([CELLS, PIXELS], A)
    for tile in range(tiles):
        pixel = start + tile * PIXELS
        valid = used[:, None] & (pixel + lane < pixels)[None, :]
        here = x + origin(outer, first_cell, pixel, cells, pixels, CHANNELS_LAST)
        value = tl.load(here + steps, mask=valid, other=0).to(A) - first[:, None]
        change = tl.where(valid, value - mean, 0)
        mean += change * (1.0 / tl.cast(tile + 1, A))
        squares += change * (value - mean)
    seen = tl.minimum(tl.maximum((pixels - start - lane + PIXELS - 1) // PIXELS, 0), tiles).to(A)
    pooled, spread = merged(seen[None, :], mean, squares, 1)
    if WHOLE:
        store_stats(out, total, index, used, first, pooled, spread, pixels)
    else:
        at = tl.cast(split, tl.int64) * total + index
        tl.store(out + at, pooled, mask=used)
        tl.store(out + tl.cast(splits, tl.int64) * total + at, spread, mask=used)
        if arrived is not None:
            block = outer * cell_blocks + tl.program_id(0) % cell_blocks
            # All threads have stored their parts before one of them says so: see layer_sums.
            tl.debug_barrier()
            if tl.atomic_add(arrived + block, 1, sem="acq_rel", scope="gpu") == splits - 1:
                tl.store(arrived + block, 0)
                pooled, spread = merged_parts(out, index, used, pixels, total, splits, tiles * PIXELS, CELLS, PARTS)
                store_stats(stats, total, index, used, first, pooled, spread, pixels)


@triton.jit
def merge_moments(
    x, parts, stats, cells, pixels, total, splits, part,
    CHANNELS_LAST: tl.constexpr, CELLS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """`stats` from the parts of `moments`, each of `part` pixels but the last."""
    # m = sum_i P_i m_i / (H W),  s = sum_i (squares_i + P_i (m_i - m)^2) / (H W),  over parts i of P_i pixels
    A: tl.constexpr = stats.dtype.element_ty
    index = tl.cast(tl.program_id(0), tl.int64) * CELLS + tl.arange(0, CELLS)
    used = index < total
    if CHANNELS_LAST:
        edge = index // cells * pixels * cells + index % cells
    else:
        edge = index * pixels
    first = tl.load(x + edge, mask=used, other=0).to(A)
    split = tl.arange(0, SPLITS)[:, None]
    valid = used[None, :] & (split < splits)
    at = parts + tl.cast(split, tl.int64) * total + index[None, :]
    mean = tl.load(at, mask=valid, other=0)
    squares = tl.load(at + tl.cast(splits, tl.int64) * total, mask=valid, other=0)
    seen = tl.minimum(tl.maximum(pixels - split * part, 0), part).to(A)
    pooled, spread = merged(seen, mean, squares, 0)
    store_stats(stats, total, index, used, first, pooled, spread, pixels)


@triton.jit
def affine(
    x, y, stats, scale, shift, runs, other, total, cell_blocks, splits, tiles,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Y, (N, C, H, W), from scale and shift, (N, C)."""
    # Y = scale (X - m) + shift
    A: tl.constexpr = stats.dtype.element_ty
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    centre = tl.load(stats + 2 * total + index, mask=used, other=0)[:, None]
    slope = tl.load(scale + index, mask=used, other=0)
    offset = tl.load(shift + index, mask=used, other=0) - slope * tl.load(stats + 3 * total + index, mask=used, other=0)
    steps = inside_tile(cells, pixels, CELLS, PIXELS, CHANNELS_LAST)
    lane = tl.arange(0, PIXELS)
    for tile in range(tiles):
        pixel = (split * tiles + tile) * PIXELS
        valid = used[:, None] & (pixel + lane < pixels)[None, :]
        at = origin(outer, first_cell, pixel, cells, pixels, CHANNELS_LAST)
        value = tl.load(x + at + steps, mask=valid, other=0).to(A) - centre
        tl.store(y + at + steps, (value * slope[:, None] + offset[:, None]).to(y.dtype.element_ty), mask=valid)


@triton.jit
def sums_of_tiles(
    dy, x, stats, index, used, outer, first_cell, split, cells, pixels, total, tiles,
    CHANNELS_LAST: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sums of dY and dY * (X - m) over this program's tiles, (CELLS) each."""
    A: tl.constexpr = stats.dtype.element_ty
    centre = tl.load(stats + 2 * total + index, mask=used, other=0)[:, None]
    rest = tl.load(stats + 3 * total + index, mask=used, other=0)
    steps = inside_tile(cells, pixels, CELLS, PIXELS, CHANNELS_LAST)
    lane = tl.arange(0, PIXELS)
    plain = tl.zeros([CELLS, PIXELS], A)
    dot = tl.zeros([CELLS, PIXELS], A)
    for tile in range(tiles):
        pixel = (split * tiles + tile) * PIXELS
        valid = used[:, None] & (pixel + lane < pixels)[None, :]
        at = origin(outer, first_cell, pixel, cells, pixels, CHANNELS_LAST)
        grad = tl.load(dy + at + steps, mask=valid, other=0).to(A)
        value = tl.load(x + at + steps, mask=valid, other=0).to(A) - centre
        plain += grad
        dot += grad * value
    whole = tl.sum(plain, 1)
    return whole, tl.sum(dot, 1) - rest * whole


@triton.jit
def gradient_sums(
    dy, x, stats, out, runs, other, total, cell_blocks, splits, tiles,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sums of dY and dY * (X - m): (2, N, C) with one split, else (2, splits, N, C)."""
    # sum dY and sum dY (X - m), over the pixels of a cell, or of its part
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    plain, dot = sums_of_tiles(
        dy, x, stats, index, used, outer, first_cell, split, cells, pixels, total, tiles, CHANNELS_LAST, CELLS, PIXELS
    )
    at = tl.cast(split, tl.int64) * total + index
    tl.store(out + at, plain, mask=used)
    tl.store(out + tl.cast(splits, tl.int64) * total + at, dot, mask=used)


@triton.jit
def merge_sums(parts, sums, total, splits, CELLS: tl.constexpr, SPLITS: tl.constexpr):
    """(2, splits, N, C) -> (2, N, C), added up; the grid's second axis is the first of these."""
    # sum = sum_i part_i
    index = tl.cast(tl.program_id(0), tl.int64) * CELLS + tl.arange(0, CELLS)
    which = tl.cast(tl.program_id(1), tl.int64)
    used = index < total
    split = tl.arange(0, SPLITS)[:, None]
    at = (which * splits + split) * total + index[None, :]
    values = tl.load(parts + at, mask=used[None, :] & (split < splits), other=0)
    tl.store(sums + which * total + index, tl.sum(values, 0), mask=used)


@triton.jit
def store_input_gradient(
    dy, x, dx, stats, sum_dy, scale, d_mean, d_var, index, used, outer, first_cell, split, cells, pixels, total, tiles,
    CHANNELS_LAST: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Stores dX of this program's tiles; d_mean and d_var are those of its cells, (CELLS)."""
    A: tl.constexpr = stats.dtype.element_ty
    centre = tl.load(stats + 2 * total + index, mask=used, other=0)[:, None]
    rest = tl.load(stats + 3 * total + index, mask=used, other=0)
    factor = tl.load(scale + index, mask=used, other=0)
    slope = 2 * d_var / pixels
    offset = d_mean - factor * tl.load(sum_dy + index, mask=used, other=0)
    offset = offset / pixels - slope * rest
    steps = inside_tile(cells, pixels, CELLS, PIXELS, CHANNELS_LAST)
    lane = tl.arange(0, PIXELS)
    for tile in range(tiles):
        pixel = (split * tiles + tile) * PIXELS
        valid = used[:, None] & (pixel + lane < pixels)[None, :]
        at = origin(outer, first_cell, pixel, cells, pixels, CHANNELS_LAST)
        grad = tl.load(dy + at + steps, mask=valid, other=0).to(A)
        value = tl.load(x + at + steps, mask=valid, other=0).to(A) - centre
        value = value * slope[:, None] + offset[:, None] + grad * factor[:, None]
        tl.store(dx + at + steps, value.to(dx.dtype.element_ty), mask=valid)


@triton.jit
def input_gradient(
    dy, x, dx, stats, sum_dy, scale, d_mean, d_var, runs, other, total, cell_blocks, splits, tiles,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """dX, from the gradients with respect to m and s, (N, C)."""
    # dX = scale (dY - mean dY) + (d_mean + 2 d_var (X - m)) / (H W)
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    own_mean = tl.load(d_mean + index, mask=used, other=0)
    own_var = tl.load(d_var + index, mask=used, other=0)
    store_input_gradient(
        dy, x, dx, stats, sum_dy, scale, own_mean, own_var, index, used, outer, first_cell, split, cells, pixels,
        total, tiles, CHANNELS_LAST, CELLS, PIXELS,
    )  # fmt: skip
