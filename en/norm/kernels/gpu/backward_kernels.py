"""A layer's backward pass as three Triton kernels, of which the second is on (N, K, C) and less.

sets.py says what the kernels share, pass_kernels.py how those over (N, C, H, W) walk over it.
"""

import triton
import triton.language as tl

from en.norm.kernels.gpu.gate_kernels import gate_gradients, logit_gradients
from en.norm.kernels.gpu.pass_kernels import place, sizes, store_input_gradient, sums_of_tiles
from en.norm.kernels.gpu.sets import (
    BATCH,
    CORRELATION,
    GROUP,
    INSTANCE,
    LAYER,
    RUNNING,
    STATIC,
    cell_of,
    kind_of,
    offset_and_var,
    row_of,
    sets_of,
    softmax_gradient,
)

# ---- 1. sums over the pixels of each cell, and of a sample's cells the gradients of its ratios ----


@triton.jit
def merged_sums(
    parts, sums, which, n, c, samples, channels, splits, WHOLE: tl.constexpr, CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Sums (CHANNELS) of a sample's cells; where they are no WHOLE ones yet, adds up their parts and stores them."""
    total = tl.cast(samples, tl.int64) * channels
    at = n * channels + c
    if WHOLE:
        found = tl.load(sums + which * total + at, mask=c < channels, other=0)
    else:
        part = tl.arange(0, PARTS)[:, None]
        added = tl.zeros([PARTS, CHANNELS], parts.dtype.element_ty)
        for first in range(0, splits, PARTS):
            used = (first + part < splits) & (c < channels)[None, :]
            added += tl.load(parts + (which * splits + first + part) * total + at[None, :], mask=used, other=0)
        found = tl.sum(added, 0)
        tl.store(sums + which * total + at, found, mask=c < channels)
    return found


@triton.jit
def ratio_gradients(
    statistics, parts, sums, weight, w1, w2, ratios, hidden, d_logits, d_hidden, d_v, n, kinds, samples, channels,
    groups, units, splits,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, RELU: tl.constexpr, GATE_SCALE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr, AFFINE_ROWS: tl.constexpr, APART: tl.constexpr, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, UNITS: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of sample n's logits, of the gate's hidden units before activation, and of v plus its transpose.

    They are (2, N, K), the second half used where variances have logits APART, (N, H) and (N, K, K).
    """
    A: tl.constexpr = statistics.dtype.element_ty
    row = tl.arange(0, ROWS)
    k = row[:, None]
    mean_ratio = tl.load(ratios + n * K + row, mask=row < K, other=0)
    var_ratio = tl.load(ratios + (samples + n) * K + row, mask=row < K, other=0)
    d_mean = tl.zeros([ROWS], A)
    d_var = tl.zeros([ROWS], A)
    for start in range(0, channels, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        d_shift = merged_sums(parts, sums, 0, n, channel, samples, channels, splits, WHOLE, CHANNELS, PARTS)[None, :]
        d_scale = merged_sums(parts, sums, 1, n, channel, samples, channels, splits, WHOLE, CHANNELS, PARTS)[None, :]
        c = channel[None, :]
        used = (k < K) & (c < channels)
        offset, var = offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups)
        gains = tl.load(weight + row_of(k, AFFINE_ROWS) * channels + c, mask=used, other=0)
        if MIX_STATISTICS:
            rstd = 1 / tl.sqrt(tl.sum(var_ratio[:, None] * var, 0, keep_dims=True) + EPS)
            rise = tl.sum(mean_ratio[:, None] * offset, 0, keep_dims=True)
            d_mean += tl.sum(d_shift * gains * rstd * offset, 1)
            d_var -= 0.5 * tl.sum((d_scale + d_shift * rise) * gains * rstd * rstd * rstd * var, 1)
        else:
            d_mean += tl.sum((d_scale + d_shift * offset) * gains / tl.sqrt(var + EPS), 1)
    if APART:
        d_out = softmax_gradient(var_ratio, d_var)
        tl.store(d_logits + (samples + n) * K + row, d_out, mask=row < K)
        d_out = softmax_gradient(mean_ratio, d_mean)
    else:
        d_out = softmax_gradient(mean_ratio, d_mean + d_var)
    tl.store(d_logits + n * K + row, d_out, mask=row < K)
    if SOURCE != STATIC:
        i = row[None, :, None]
        j = row[None, None, :]
        found = tl.zeros([ROWS, ROWS], A)
        for start in range(0, units, UNITS):
            unit = start + tl.arange(0, UNITS)
            known = unit < units
            after = tl.load(hidden + n * units + unit, mask=known, other=0)
            weights = tl.load(w2 + k * units + unit[None, :], mask=(k < K) & known[None, :], other=0)
            d_before = GATE_SCALE * tl.sum(d_out[:, None] * weights, 0)
            if RELU:
                d_before = tl.where(after > 0, d_before, 0)
            else:
                d_before = d_before * (1 - after * after)
            tl.store(d_hidden + n * units + unit, d_before, mask=known)
            used = known[:, None, None] & (i < K) & (j < K)
            weights = tl.load(w1 + unit[:, None, None] * (K * K) + i * K + j, mask=used, other=0)
            found += tl.sum(d_before[:, None, None] * weights, 0)
        square = (k < K) & (row < K)[None, :]
        tl.store(d_v + n * K * K + k * K + row[None, :], found + tl.trans(found), mask=square)


@triton.jit
def layer_sums(
    dy, x, statistics, parts, sums, arrived, weight, w1, w2, ratios, hidden, d_logits, d_hidden, d_v,
    runs, other, total, cell_blocks, splits, tiles, kinds, samples, channels, groups, units,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, RELU: tl.constexpr, GATE_SCALE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr, AFFINE_ROWS: tl.constexpr, APART: tl.constexpr, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, UNITS: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr, FOR_RATIOS: tl.constexpr,
):  # fmt: skip
    """Sums (2, N, C) as `gradient_sums` has them; then each sample's ratio_gradients, by the last program of its cells.

    `arrived`, (N) zeros and zeros again afterwards, counts the programs that are done with a sample. Which one is last
    is chance; what it adds up, and in which order, is not.
    """
    # d_shift = sum dY,  d_scale = sum dY (X - m)
    # d_ratio_k = sum_c (d_scale + d_shift offset_k) weight_k / sqrt(var_k + eps),  d_logits = softmax'(d_ratio)
    # d_hidden = activation'(s W2^T d_logits),  d_v + d_v^T = W1^T d_hidden + its transpose
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    plain, dot = sums_of_tiles(
        dy, x, statistics, index, used, outer, first_cell, split, cells, pixels, total, tiles,
        CHANNELS_LAST, CELLS, PIXELS,
    )  # fmt: skip
    at = tl.cast(split, tl.int64) * total + index
    tl.store(parts + at, plain, mask=used)
    tl.store(parts + tl.cast(splits, tl.int64) * total + at, dot, mask=used)
    if CHANNELS_LAST:
        lowest = outer
        highest = outer
    else:
        lowest = first_cell // channels
        highest = (tl.minimum(first_cell + CELLS, total) - 1) // channels
    if FOR_RATIOS or not WHOLE:
        # All threads have stored theirs before one of them says so, in an order of memory that the last one to say so,
        # and by the barrier behind its turn all threads of that program, see as well.
        tl.debug_barrier()
        for n in range(lowest, highest + 1):
            if CHANNELS_LAST:
                programs = cell_blocks * splits
            else:
                programs = ((n * channels + channels - 1) // CELLS - n * channels // CELLS + 1) * splits
            if tl.atomic_add(arrived + n, 1, sem="acq_rel", scope="gpu") == programs - 1:
                tl.store(arrived + n, 0)
                if FOR_RATIOS:
                    ratio_gradients(
                        statistics, parts, sums, weight, w1, w2, ratios, hidden, d_logits, d_hidden, d_v, n, kinds,
                        samples, channels, groups, units, splits, K, ROWS, SOURCE, RELU, GATE_SCALE, MIX_STATISTICS,
                        AFFINE_ROWS, APART, EPS, CHANNELS, UNITS, WHOLE, PARTS,
                    )  # fmt: skip
                else:
                    for start in range(0, channels, CHANNELS):
                        c = start + tl.arange(0, CHANNELS)
                        merged_sums(parts, sums, 0, n, c, samples, channels, splits, WHOLE, CHANNELS, PARTS)
                        merged_sums(parts, sums, 1, n, c, samples, channels, splits, WHOLE, CHANNELS, PARTS)


# ---- 2. sums over sets of cells, and over samples ----


@triton.jit
def cell_gradients(
    statistics, sums, weight, kernel, ratios, z, d_v, kinds, k, n, c, used, samples, channels, groups, reduced,
    K: tl.constexpr, SOURCE: tl.constexpr, MIX_STATISTICS: tl.constexpr, AFFINE_ROWS: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of offset and variance, a cell's parts of those of weight and kernel, that of shift, and the offset.

    All by (k, n, c). The parts are to be summed over k, too, where there is one row; shift's is the same for every k.
    """
    at = n * channels + c + 0 * k
    offset, var = offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups)
    d_shift = tl.load(sums + at, mask=used, other=0)
    d_scale = tl.load(sums + tl.cast(samples, tl.int64) * channels + at, mask=used, other=0)
    ratio = tl.load(ratios + n * K + k + 0 * c, mask=used, other=0)
    gains = tl.load(weight + row_of(k, AFFINE_ROWS) * channels + c + 0 * n, mask=used, other=0)
    rstd = 1 / tl.sqrt(var + EPS)
    if MIX_STATISTICS:
        var_ratio = tl.load(ratios + (samples + n) * K + k + 0 * c, mask=used, other=0)
        mixed = 1 / tl.sqrt(tl.sum(var_ratio * var, 0, keep_dims=True) + EPS)
        change = (d_scale + d_shift * tl.sum(ratio * offset, 0, keep_dims=True)) * mixed
        d_gain = tl.where(k == 0, change, 0)
        d_offset = d_shift * gains * ratio * mixed
        d_var = -0.5 * change * gains * var_ratio * mixed * mixed
    else:
        change = (d_scale + d_shift * offset) * rstd
        d_gain = change * ratio
        d_offset = d_shift * gains * ratio * rstd
        d_var = -0.5 * change * gains * ratio * rstd * rstd
    d_kernel = 0 * d_offset
    if SOURCE == CORRELATION:
        group = c // (channels // reduced)
        d_z = 0 * d_offset
        for j in tl.static_range(K):
            pair = tl.load(d_v + (n * K + k) * K + j + 0 * c, mask=used, other=0)
            d_z += pair * tl.load(z + (n * K + j) * reduced + group + 0 * k, mask=used, other=0)
        d_z *= rstd
        d_kernel = d_z * offset
        d_z *= tl.load(kernel + c + 0 * k + 0 * n, mask=used, other=0)
        d_offset += d_z
        d_var -= 0.5 * d_z * offset * rstd * rstd
    return d_offset, d_var, d_gain, d_kernel, d_shift, offset


@triton.jit
def pool_set_gradients(
    statistics, sums, weight, kernel, ratios, z, d_v, grads, d_weight, d_bias, d_kernel, kinds, kind, block,
    samples, channels, groups, set_groups, reduced,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr, EPS: tl.constexpr, MEMBERS: tl.constexpr, SETS: tl.constexpr,
):  # fmt: skip
    """Means over a block of sets of one kind; those over samples also give the gradients of weight, bias and kernel."""
    A: tl.constexpr = statistics.dtype.element_ty
    k = tl.arange(0, ROWS)[:, None, None]
    member = tl.arange(0, MEMBERS)[:, None]
    chosen = kind_of(kinds, k) == kind
    offsets = tl.zeros([ROWS, MEMBERS, SETS], A)
    variances = tl.zeros([ROWS, MEMBERS, SETS], A)
    gains = tl.zeros([ROWS, MEMBERS, SETS], A)
    kernels = tl.zeros([ROWS, MEMBERS, SETS], A)
    shifts = tl.zeros([ROWS, MEMBERS, SETS], A)
    if kind == BATCH:
        members = samples
        sets = channels
    else:
        members = channels // set_groups
        sets = samples * set_groups
    for step in range((members + MEMBERS - 1) // MEMBERS):
        n, c, exists = cell_of(kind, block, step * MEMBERS + member, samples, channels, set_groups, SETS)
        used = (k < K) & exists[None, :, :]
        d_offset, d_var, d_gain, d_factor, d_shift, _ = cell_gradients(
            statistics, sums, weight, kernel, ratios, z, d_v, kinds, k, n[None, :, :], c[None, :, :], used, samples,
            channels, groups, reduced, K, SOURCE, MIX_STATISTICS, AFFINE_ROWS, EPS,
        )  # fmt: skip
        offsets += tl.where(chosen, d_offset, 0)
        variances += tl.where(chosen, d_var, 0)
        if kind == BATCH:
            gains += d_gain
            shifts += tl.where(k == 0, d_shift, 0)
            kernels += d_factor
    base, gap, _, _ = sets_of(kind, samples, channels, groups, 0)
    number = block * SETS + tl.arange(0, SETS)
    used = number < sets
    tl.store(grads + base + number, tl.sum(tl.sum(offsets, 1), 0) / members, mask=used)
    tl.store(grads + base + gap + number, tl.sum(tl.sum(variances, 1), 0) / members, mask=used)
    if kind == BATCH:
        row = tl.arange(0, ROWS)[:, None]
        own = tl.sum(gains, 1)
        if AFFINE_ROWS == 1:
            own = tl.where(row == 0, tl.sum(own, 0, keep_dims=True), 0)
        at = row * channels + number[None, :]
        rows = (row < AFFINE_ROWS) & used[None, :]
        tl.store(d_weight + at, own, mask=rows)
        tl.store(d_bias + at, tl.sum(tl.sum(shifts, 1), 0, keep_dims=True) + 0 * own, mask=rows)
        if SOURCE == CORRELATION:
            tl.store(d_kernel + number, tl.sum(tl.sum(kernels, 1), 0), mask=used)


@triton.jit
def pool_gradients(
    statistics, sums, weight, kernel, ratios, z, d_v, grads, d_weight, d_bias, d_kernel,
    v, hidden, d_hidden, d_logits, d_w1, d_b1, d_w2, d_b2, d_own, d_var_own,
    kinds, samples, channels, groups, reduced, units,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr, EPS: tl.constexpr, POOLS: tl.constexpr, COUNT: tl.constexpr, MEMBERS: tl.constexpr,
    SETS: tl.constexpr, LAYER_MEMBERS: tl.constexpr, LAYER_SETS: tl.constexpr, GROUP_MEMBERS: tl.constexpr,
    GROUP_SETS: tl.constexpr, GATE_SCALE: tl.constexpr, SAMPLES: tl.constexpr,
    UNITS: tl.constexpr, INPUTS: tl.constexpr, RATIO_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Sums over samples, and over the channels of ln's and gn's sets: one kind for each program of the second axis.

    Beyond these, RATIO_BLOCKS programs have the gradients of what the ratios come from, of the gate or of logits.
    """
    # d_weight_k = sum_n d_scale ratio_k / sqrt(var_k + eps) + ...,  d_bias = sum_n d_shift,  d_kernel = sum_n,k dz xhat
    # for each set: mean of d_offset_k, mean of d_var_k;  d_W = sum_n d_out_n in_n^T, d_b = sum_n d_out_n
    block = tl.program_id(0)
    if RATIO_BLOCKS:
        if (tl.program_id(1) == COUNT) & (block < RATIO_BLOCKS):
            if SOURCE == STATIC:
                logit_gradients(d_logits, d_own, d_var_own, block, samples, K, ROWS, SAMPLES)
            else:
                gate_gradients(
                    v, hidden, d_hidden, d_logits, d_w1, d_b1, d_w2, d_b2, block, samples, units,
                    K, ROWS, SAMPLES, GATE_SCALE, UNITS, INPUTS,
                )  # fmt: skip
    for which in tl.static_range(COUNT):
        if tl.program_id(1) == which:
            if (POOLS >> (3 * which)) & 7 == BATCH:
                pool_set_gradients(
                    statistics, sums, weight, kernel, ratios, z, d_v, grads, d_weight, d_bias, d_kernel, kinds,
                    BATCH, block, samples, channels, groups, 1, reduced, K, ROWS, SOURCE, MIX_STATISTICS,
                    AFFINE_ROWS, EPS, MEMBERS, SETS,
                )  # fmt: skip
            elif (POOLS >> (3 * which)) & 7 == LAYER:
                pool_set_gradients(
                    statistics, sums, weight, kernel, ratios, z, d_v, grads, d_weight, d_bias, d_kernel, kinds,
                    LAYER, block, samples, channels, groups, 1, reduced, K, ROWS, SOURCE, MIX_STATISTICS,
                    AFFINE_ROWS, EPS, LAYER_MEMBERS, LAYER_SETS,
                )  # fmt: skip
            else:
                pool_set_gradients(
                    statistics, sums, weight, kernel, ratios, z, d_v, grads, d_weight, d_bias, d_kernel, kinds,
                    GROUP, block, samples, channels, groups, groups, reduced, K, ROWS, SOURCE, MIX_STATISTICS,
                    AFFINE_ROWS, EPS, GROUP_MEMBERS, GROUP_SETS,
                )  # fmt: skip


# ---- 3. the gradient of the input ----


@triton.jit
def moment_gradients(
    statistics, sums, weight, kernel, ratios, z, d_v, grads, kinds, n, c, exists, samples, channels, groups, reduced,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of m and s of the cells (n, c), which are (1, CELLS) as are the results' tiles: two of (CELLS).

    The set of `in` is the cell itself. The running averages are no means of these cells: their means count as 0.
    """
    k = tl.arange(0, ROWS)[:, None]
    used = (k < K) & exists
    d_offset, d_var, _, _, _, offset = cell_gradients(
        statistics, sums, weight, kernel, ratios, z, d_v, kinds, k, n, c, used, samples, channels, groups, reduced,
        K, SOURCE, MIX_STATISTICS, AFFINE_ROWS, EPS,
    )  # fmt: skip
    kind = kind_of(kinds, k)
    base, gap, stride, size = sets_of(kind, samples, channels, groups, 0)
    at = grads + base + n * stride + c // size
    pooled = used & (kind != INSTANCE) & (kind != RUNNING)
    mean_offset = tl.load(at, mask=pooled, other=0)
    mean_var = tl.load(at + gap, mask=pooled, other=0)
    alone = kind == INSTANCE
    mean_var = tl.where(alone, d_var, mean_var)
    d_mean = d_offset - tl.where(alone, d_offset, mean_offset) + 2 * mean_var * offset
    return tl.sum(tl.where(used, d_mean, 0), 0), tl.sum(tl.where(used, mean_var, 0), 0)


@triton.jit
def layer_input_gradient(
    dy, x, dx, statistics, sums, scale, weight, kernel, ratios, z, d_v, grads,
    runs, other, total, cell_blocks, splits, tiles, kinds, samples, channels, groups, reduced,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
    K: tl.constexpr, ROWS: tl.constexpr, SOURCE: tl.constexpr, MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """dX, from the sums of a cell and their means over its sets."""
    # d_m = sum_k d_offset_k - mean d_offset_k + 2 mean d_var_k offset_k,  d_s = sum_k mean d_var_k
    # dX = scale (dY - mean dY) + (d_m + 2 d_s (X - m)) / (H W)
    cells, pixels = sizes(runs, other, CHANNELS_LAST, UNIT)
    outer, first_cell, split, index, used = place(cell_blocks, splits, cells, CELLS)
    n = index // channels
    c = tl.cast(index - n * channels, tl.int32)
    d_mean, d_var = moment_gradients(
        statistics, sums, weight, kernel, ratios, z, d_v, grads, kinds, n[None, :], c[None, :], used[None, :],
        samples, channels, groups, reduced, K, ROWS, SOURCE, MIX_STATISTICS, AFFINE_ROWS, EPS,
    )  # fmt: skip
    store_input_gradient(
        dy, x, dx, statistics, sums, scale, d_mean, d_var, index, used, outer, first_cell, split, cells, pixels,
        total, tiles, CHANNELS_LAST, CELLS, PIXELS,
    )  # fmt: skip
