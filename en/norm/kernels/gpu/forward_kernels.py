"""The part of a normalizer on (N, K, C) and less, forward, as two Triton kernels: see sets.py for what they share."""

import triton
import triton.language as tl

from en.norm.kernels.gpu.sets import (
    BATCH,
    GROUP,
    LAYER,
    RUNNING,
    STATIC,
    cell_of,
    offset_and_var,
    row_of,
    sets_of,
    softmax,
    tanh,
)


@triton.jit
def pool_set(statistics, kind, block, samples, channels, groups, set_groups, MEMBERS: tl.constexpr, SETS: tl.constexpr):
    """Mean and variance of a block of sets of one kind, pooled from the moments of their cells: Welford's, then a sum.

    Stores them, and returns them, the sets' numbers and which exist, all (SETS,).
    """
    A: tl.constexpr = statistics.dtype.element_ty
    member = tl.arange(0, MEMBERS)[:, None]
    mean = tl.zeros([MEMBERS, SETS], A)
    squares = tl.zeros([MEMBERS, SETS], A)
    inner = tl.zeros([MEMBERS, SETS], A)
    cells = tl.cast(samples, tl.int64) * channels
    if kind == BATCH:
        members = samples
        sets = channels
    else:
        members = channels // set_groups
        sets = samples * set_groups
    n, c, used = cell_of(kind, block, 0 * member, samples, channels, set_groups, SETS)
    first = tl.load(statistics + n * channels + c, mask=used, other=0)
    for step in range((members + MEMBERS - 1) // MEMBERS):
        n, c, used = cell_of(kind, block, step * MEMBERS + member, samples, channels, set_groups, SETS)
        value = tl.load(statistics + n * channels + c, mask=used, other=0) - first
        inner += tl.load(statistics + cells + n * channels + c, mask=used, other=0)
        change = tl.where(used, value - mean, 0)
        mean += change * (1.0 / tl.cast(step + 1, A))
        squares += change * (value - mean)
    seen = tl.maximum((members - member + MEMBERS - 1) // MEMBERS, 0).to(A)
    pooled = tl.sum(seen * mean, 0) / members
    distance = mean - pooled[None, :]
    var = tl.sum(squares + inner + seen * distance * distance, 0) / members
    pooled += tl.sum(tl.where(member == 0, first, 0), 0)
    base, gap, _, _ = sets_of(kind, samples, channels, groups, 4)
    number = block * SETS + tl.arange(0, SETS)
    tl.store(statistics + base + number, pooled, mask=number < sets)
    tl.store(statistics + base + gap + number, var, mask=number < sets)
    return pooled, var, number, number < sets


@triton.jit
def pool_batch(
    statistics, running_mean, running_var, batches, block, samples, channels, groups, pixels,
    MOMENTUM: tl.constexpr, MEMBERS: tl.constexpr, SETS: tl.constexpr,
):  # fmt: skip
    """The statistics of bn in training, which go into the running averages as nn.BatchNorm2d's do."""
    A: tl.constexpr = statistics.dtype.element_ty
    mean, var, channel, used = pool_set(statistics, BATCH, block, samples, channels, groups, 1, MEMBERS, SETS)
    count = tl.cast(samples, A) * pixels
    if MOMENTUM is None:
        share = 1.0 / tl.cast(tl.load(batches) + 1, A)
    else:
        share = tl.full([], MOMENTUM, A)
    old_mean = tl.load(running_mean + channel, mask=used, other=0)
    old_var = tl.load(running_var + channel, mask=used, other=0)
    unbiased = var * (count / tl.maximum(count - 1, 1))
    tl.store(running_mean + channel, old_mean + share * (mean - old_mean), mask=used)
    tl.store(running_var + channel, old_var + share * (unbiased - old_var), mask=used)


@triton.jit
def take_running(statistics, running_mean, running_var, block, samples, channels, groups, SETS: tl.constexpr):
    """The running averages as the statistics of bn, in evaluation."""
    base, gap, _, _ = sets_of(RUNNING, samples, channels, groups, 4)
    channel = block * SETS + tl.arange(0, SETS)
    used = channel < channels
    tl.store(statistics + base + channel, tl.load(running_mean + channel, mask=used, other=0), mask=used)
    tl.store(statistics + base + gap + channel, tl.load(running_var + channel, mask=used, other=0), mask=used)


@triton.jit
def pool(
    statistics, running_mean, running_var, batches, samples, channels, groups, pixels,
    POOLS: tl.constexpr, COUNT: tl.constexpr, MOMENTUM: tl.constexpr, MEMBERS: tl.constexpr, SETS: tl.constexpr,
    LAYER_MEMBERS: tl.constexpr, LAYER_SETS: tl.constexpr, GROUP_MEMBERS: tl.constexpr, GROUP_SETS: tl.constexpr,
):  # fmt: skip
    """Fills in the statistics of bn, ln and gn: those of one kind for each program of the second axis, as in POOLS."""
    # mean = sum m / M,  var = sum (s + (m - mean)^2) / M,  over the M cells of a set
    # running += momentum (batch - running), with the unbiased variance
    block = tl.program_id(0)
    for place in tl.static_range(COUNT):
        if tl.program_id(1) == place:
            if (POOLS >> (3 * place)) & 7 == BATCH:
                pool_batch(
                    statistics, running_mean, running_var, batches, block, samples, channels, groups, pixels,
                    MOMENTUM, MEMBERS, SETS,
                )  # fmt: skip
            elif (POOLS >> (3 * place)) & 7 == RUNNING:
                take_running(statistics, running_mean, running_var, block, samples, channels, groups, SETS)
            elif (POOLS >> (3 * place)) & 7 == LAYER:
                pool_set(statistics, LAYER, block, samples, channels, groups, 1, LAYER_MEMBERS, LAYER_SETS)
            else:
                pool_set(statistics, GROUP, block, samples, channels, groups, groups, GROUP_MEMBERS, GROUP_SETS)


@triton.jit
def correlate(
    statistics, kernel, z, kinds, n, samples, channels, groups, reduced,
    K: tl.constexpr, ROWS: tl.constexpr, EPS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """v = z z^T of a sample, K x K of (ROWS, ROWS); stores z: by group, the sum of kernel * xhat."""
    A: tl.constexpr = statistics.dtype.element_ty
    row = tl.arange(0, ROWS)[:, None]
    k = row[:, :, None]
    size = channels // reduced
    v = tl.zeros([ROWS, ROWS], A)
    for start in range(0, reduced, GROUPS):
        group = start + tl.arange(0, GROUPS)
        sums = tl.zeros([ROWS, GROUPS], A)
        for first in range(0, size, SIZE):
            member = (first + tl.arange(0, SIZE))[None, None, :]
            c = group[None, :, None] * size + member
            used = (k < K) & (group[None, :, None] < reduced) & (member < size)
            offset, var = offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups)
            factor = tl.load(kernel + c + 0 * k, mask=used, other=0)
            sums += tl.sum(factor * offset / tl.sqrt(var + EPS), 2)
        used = (row < K) & (group[None, :] < reduced)
        tl.store(z + (n * K + row) * reduced + group[None, :], sums, mask=used)
        v += tl.sum(sums[:, None, :] * sums[None, :, :], 2)
    return v


@triton.jit
def logits_of(
    v, w1, b1, w2, b2, hidden, n, units,
    K: tl.constexpr, ROWS: tl.constexpr, RELU: tl.constexpr, GATE_SCALE: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The gate's output (ROWS,) for a sample, from v; stores the hidden units, unscaled."""
    row = tl.arange(0, ROWS)
    out = tl.load(b2 + row, mask=row < K, other=0)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        known = unit < units
        before = tl.load(b1 + unit, mask=known, other=0)
        i = row[None, :, None]
        j = row[None, None, :]
        used = known[:, None, None] & (i < K) & (j < K)
        weights = tl.load(w1 + unit[:, None, None] * (K * K) + i * K + j, mask=used, other=0)
        before += tl.sum(tl.sum(weights * v[None, :, :], 2), 1)
        if RELU:
            after = tl.maximum(before, 0)
        else:
            after = tanh(before)
        tl.store(hidden + n * units + unit, after, mask=known)
        used = (row < K)[:, None] & known[None, :]
        weights = tl.load(w2 + row[:, None] * units + unit[None, :], mask=used, other=0)
        out += GATE_SCALE * tl.sum(weights * after[None, :], 1)
    return out


@triton.jit
def coefficients(
    statistics, batches, weight, bias, kernel, w1, b1, w2, b2, logits, var_logits, ratios, z, v, hidden, arrived,
    scale, shift, kinds, samples, channels, groups, reduced, units,
    K: tl.constexpr, ROWS: tl.constexpr, ABSENT: tl.constexpr, SOURCE: tl.constexpr, RELU: tl.constexpr,
    GATE_SCALE: tl.constexpr, MIX_STATISTICS: tl.constexpr, AFFINE_ROWS: tl.constexpr, COUNT: tl.constexpr,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A sample's ratios (2, N, K), of means or outputs and of variances, and from them scale and shift (N, C).

    Sets its place of `arrived` (N) to 0, for the backward pass.
    """
    # z_kg = sum over c in g of kernel_c offset_kc / sqrt(var_kc + eps),  v = z z^T
    # ratio = softmax(W2 s activation(W1 v + b1) + b2), or softmax(logits)
    # scale = sum_k weight_k ratio_k / sqrt(var_k + eps),  shift = sum_k (scale_k offset_k + bias_k)
    # statistics mixed: scale = weight / sqrt(sum_k b_k var_k + eps),  shift = scale sum_k a_k offset_k + bias
    n = tl.cast(tl.program_id(0), tl.int64)
    tl.store(arrived + n, 0)
    row = tl.arange(0, ROWS)
    present = (row < K) & (row != ABSENT)
    if COUNT:
        if n == 0:
            tl.store(batches, tl.load(batches) + 1)
    if SOURCE == STATIC:
        mean_ratio = softmax(tl.load(logits + row, mask=row < K, other=0), present)
        var_ratio = softmax(tl.load(var_logits + row, mask=row < K, other=0), present)
    else:
        found = correlate(
            statistics, kernel, z, kinds, n, samples, channels, groups, reduced, K, ROWS, EPS, GROUPS, SIZE
        )
        square = (row < K)[:, None] & (row < K)[None, :]
        tl.store(v + n * K * K + row[:, None] * K + row[None, :], found, mask=square)
        out = logits_of(found, w1, b1, w2, b2, hidden, n, units, K, ROWS, RELU, GATE_SCALE, UNITS)
        mean_ratio = softmax(out, present)
        var_ratio = mean_ratio
    tl.store(ratios + n * K + row, mean_ratio, mask=row < K)
    tl.store(ratios + (samples + n) * K + row, var_ratio, mask=row < K)
    k = row[:, None]
    for start in range(0, channels, CHANNELS):
        c = (start + tl.arange(0, CHANNELS))[None, :]
        used = (k < K) & (c < channels)
        offset, var = offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups)
        gains = tl.load(weight + row_of(k, AFFINE_ROWS) * channels + c, mask=used, other=0)
        if MIX_STATISTICS:
            slope = tl.sum(gains * (k == 0), 0) / tl.sqrt(tl.sum(var_ratio[:, None] * var, 0) + EPS)
            rise = slope * tl.sum(mean_ratio[:, None] * offset, 0)
        else:
            gains = gains * mean_ratio[:, None] / tl.sqrt(var + EPS)
            slope = tl.sum(gains, 0)
            rise = tl.sum(gains * offset, 0)
        used = (k < AFFINE_ROWS) & (c < channels)
        rise += tl.sum(tl.load(bias + k * channels + c, mask=used, other=0), 0)
        at = n * channels + start + tl.arange(0, CHANNELS)
        exists = start + tl.arange(0, CHANNELS) < channels
        tl.store(scale + at, slope, mask=exists)
        tl.store(shift + at, rise, mask=exists)
