"""The part of a normalizer on (N, K, C) and less as Triton kernels: two launches forward, up to four backward.

Every normalizer's statistics lie in one buffer, the moments of the cells first:

    m, s, centre, rest (N, C each) | mean, var (C) of bn | mean, var (N) of ln | mean, var (N, G) of gn

so that those of any normalizer k are found by four numbers: `base`, where its means begin; `gap`, from a mean to its
variance; `stride`, sets of cells a sample has; `size`, channels a set has. Nothing of (N, K, C) is stored: offsets and
variances are read anew where they are needed. The gradients lie in a buffer of the same order, without centre and rest:
for a cell, those with respect to m and s; for a set, the means over its cells of those with respect to offset and
variance. k, n and c are tensors that broadcast to a tile, k along its first axis: (K, ...).
"""

import triton
import triton.language as tl

# Kinds of statistics, three bits each in `kinds`.
INSTANCE = tl.constexpr(0)
RUNNING = tl.constexpr(1)
BATCH = tl.constexpr(2)
LAYER = tl.constexpr(3)
GROUP = tl.constexpr(4)

# Where ratios come from.
CORRELATION = tl.constexpr(0)
POOLED = tl.constexpr(1)
STATIC = tl.constexpr(2)


@triton.jit
def sets_of(kind, samples, channels, groups, CELL_ROWS: tl.constexpr):
    """base, gap, stride and size of a kind, in a buffer that begins with CELL_ROWS rows of (N, C)."""
    n = tl.cast(samples, tl.int64)
    cells = n * channels
    batch = CELL_ROWS * cells
    layer = batch + 2 * channels
    group = layer + 2 * n
    base = tl.where(kind == INSTANCE, 0, tl.where(kind == LAYER, layer, tl.where(kind == GROUP, group, batch)))
    gap = tl.where(kind == INSTANCE, cells, tl.where(kind == LAYER, n, tl.where(kind == GROUP, n * groups, channels)))
    stride = tl.where(kind == INSTANCE, channels, tl.where(kind == LAYER, 1, tl.where(kind == GROUP, groups, 0)))
    size = tl.where(kind == LAYER, channels, tl.where(kind == GROUP, channels // groups, 1))
    return base, gap, stride, size


@triton.jit
def kind_of(kinds, k):
    return (kinds >> (3 * k)) & 7


@triton.jit
def offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups):
    """m - mu_k, and var_k; 0 and 1 where nothing is used."""
    base, gap, stride, size = sets_of(kind_of(kinds, k), samples, channels, groups, 4)
    at = base + n * stride + c // size
    mean = tl.load(statistics + at, mask=used, other=0)
    own = tl.load(statistics + n * channels + c + 0 * k, mask=used, other=0)
    return own - mean, tl.load(statistics + at + gap, mask=used, other=1)


@triton.jit
def row_of(k, AFFINE_ROWS: tl.constexpr):
    """The row of weight that normalizer k takes."""
    if AFFINE_ROWS == 1:
        row = 0 * k
    else:
        row = k
    return row


@triton.jit
def softmax(values, used):
    top = tl.max(tl.where(used, values, float("-inf")), 0)
    powers = tl.where(used, tl.exp(values - top), 0)
    return powers / tl.sum(powers, 0)


@triton.jit
def softmax_gradient(ratios, grads):
    return ratios * (grads - tl.sum(ratios * grads, 0))


@triton.jit
def tanh(x):
    power = tl.exp(-2 * tl.abs(x))
    size = (1 - power) / (1 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def cell_of(kind, block, member, samples, channels, groups, SETS: tl.constexpr):
    """Sample and channel of members (M, 1) of a block of sets: n, c, and which there are, (M, SETS).

    A set of bn is a channel, with a member in every sample; one of ln or gn is a sample's group of channels.
    """
    number = block * SETS + tl.arange(0, SETS)[None, :]
    if kind == BATCH:
        n = member + 0 * number
        c = number + 0 * member
        used = (n < samples) & (c < channels)
    else:
        size = channels // groups
        n = number // groups + 0 * member
        c = number % groups * size + member
        used = (n < samples) & (member < size)
    return tl.cast(n, tl.int64), c, used


# ---- forward ----


@triton.jit
def pool_set(
    statistics, kind, block, samples, channels, groups, set_groups, MEMBERS: tl.constexpr, SETS: tl.constexpr
):
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
    statistics,
    running_mean,
    running_var,
    batches,
    block,
    samples,
    channels,
    groups,
    pixels,
    MOMENTUM: tl.constexpr,
    MEMBERS: tl.constexpr,
    SETS: tl.constexpr,
):
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
    statistics,
    running_mean,
    running_var,
    batches,
    samples,
    channels,
    groups,
    pixels,
    POOLS: tl.constexpr,
    COUNT: tl.constexpr,
    MOMENTUM: tl.constexpr,
    MEMBERS: tl.constexpr,
    SETS: tl.constexpr,
    LAYER_MEMBERS: tl.constexpr,
    LAYER_SETS: tl.constexpr,
    GROUP_MEMBERS: tl.constexpr,
    GROUP_SETS: tl.constexpr,
):
    """Fills in the statistics of bn, ln and gn: those of one kind for each program of the second axis, as in POOLS."""
    block = tl.program_id(0)
    for place in tl.static_range(COUNT):
        if tl.program_id(1) == place:
            if (POOLS >> (3 * place)) & 7 == BATCH:
                pool_batch(
                    statistics,
                    running_mean,
                    running_var,
                    batches,
                    block,
                    samples,
                    channels,
                    groups,
                    pixels,
                    MOMENTUM,
                    MEMBERS,
                    SETS,
                )
            elif (POOLS >> (3 * place)) & 7 == RUNNING:
                take_running(statistics, running_mean, running_var, block, samples, channels, groups, SETS)
            elif (POOLS >> (3 * place)) & 7 == LAYER:
                pool_set(statistics, LAYER, block, samples, channels, groups, 1, LAYER_MEMBERS, LAYER_SETS)
            else:
                pool_set(statistics, GROUP, block, samples, channels, groups, groups, GROUP_MEMBERS, GROUP_SETS)


@triton.jit
def correlate(
    statistics,
    kernel,
    z,
    kinds,
    n,
    samples,
    channels,
    groups,
    reduced,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """v = z z^T of a sample, (ROWS, ROWS), of which K x K are used, with z stored: z is a sum of kernel * xhat by group."""
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
    inputs,
    v,
    w1,
    b1,
    w2,
    b2,
    hidden,
    n,
    channels,
    units,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """The gate's output (ROWS,) for a sample, from v or from its pooled inputs; the hidden units are stored."""
    A: tl.constexpr = hidden.dtype.element_ty
    row = tl.arange(0, ROWS)
    out = tl.load(b2 + row, mask=row < K, other=0)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        known = unit < units
        before = tl.load(b1 + unit, mask=known, other=0)
        if SOURCE == CORRELATION:
            i = row[None, :, None]
            j = row[None, None, :]
            used = known[:, None, None] & (i < K) & (j < K)
            weights = tl.load(w1 + unit[:, None, None] * (K * K) + i * K + j, mask=used, other=0)
            before += tl.sum(tl.sum(weights * v[None, :, :], 2), 1)
        else:
            sums = tl.zeros([UNITS, CHANNELS], A)
            for first in range(0, channels, CHANNELS):
                c = (first + tl.arange(0, CHANNELS))[None, :]
                used = known[:, None] & (c < channels)
                weights = tl.load(w1 + tl.cast(unit, tl.int64)[:, None] * channels + c, mask=used, other=0)
                sums += weights * tl.load(inputs + n * channels + c, mask=c < channels, other=0)
            before += tl.sum(sums, 1)
        if RELU:
            after = tl.maximum(before, 0)
        else:
            after = tanh(before)
        tl.store(hidden + n * units + unit, after, mask=known)
        used = (row < K)[:, None] & known[None, :]
        out += tl.sum(tl.load(w2 + row[:, None] * units + unit[None, :], mask=used, other=0) * after[None, :], 1)
    return out


@triton.jit
def coefficients(
    statistics,
    batches,
    weight,
    bias,
    kernel,
    w1,
    b1,
    w2,
    b2,
    logits,
    var_logits,
    ratios,
    z,
    v,
    hidden,
    scale,
    shift,
    kinds,
    samples,
    channels,
    groups,
    reduced,
    units,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    RELU: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """A sample's ratios (2, N, K), of means or outputs and of variances, and from them scale and shift (N, C)."""
    n = tl.cast(tl.program_id(0), tl.int64)
    row = tl.arange(0, ROWS)
    if COUNT:
        if n == 0:
            tl.store(batches, tl.load(batches) + 1)
    if SOURCE == STATIC:
        mean_ratio = softmax(tl.load(logits + row, mask=row < K, other=0), row < K)
        var_ratio = softmax(tl.load(var_logits + row, mask=row < K, other=0), row < K)
    else:
        if SOURCE == CORRELATION:
            found = correlate(
                statistics, kernel, z, kinds, n, samples, channels, groups, reduced, K, ROWS, EPS, GROUPS, SIZE
            )
            square = (row < K)[:, None] & (row < K)[None, :]
            tl.store(v + n * K * K + row[:, None] * K + row[None, :], found, mask=square)
        else:
            found = 0
        out = logits_of(
            statistics, found, w1, b1, w2, b2, hidden, n, channels, units, K, ROWS, SOURCE, RELU, CHANNELS, UNITS
        )
        mean_ratio = softmax(out, row < K)
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


# ---- backward ----


@triton.jit
def ratio_gradients(
    statistics,
    sums,
    weight,
    w1,
    w2,
    ratios,
    hidden,
    d_logits,
    d_hidden,
    d_v,
    kinds,
    samples,
    channels,
    groups,
    units,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    RELU: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    APART: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """A sample's gradients of the logits, (2, N, K) where those of the variances are APART; of the gate's hidden units
    before the activation, (N, H); and of v, plus its transpose, (N, K, K)."""
    A: tl.constexpr = statistics.dtype.element_ty
    n = tl.cast(tl.program_id(0), tl.int64)
    cells = tl.cast(samples, tl.int64) * channels
    row = tl.arange(0, ROWS)
    k = row[:, None]
    mean_ratio = tl.load(ratios + n * K + row, mask=row < K, other=0)
    var_ratio = tl.load(ratios + (samples + n) * K + row, mask=row < K, other=0)
    d_mean = tl.zeros([ROWS], A)
    d_var = tl.zeros([ROWS], A)
    for start in range(0, channels, CHANNELS):
        c = (start + tl.arange(0, CHANNELS))[None, :]
        used = (k < K) & (c < channels)
        offset, var = offset_and_var(statistics, kinds, k, n, c, used, samples, channels, groups)
        gains = tl.load(weight + row_of(k, AFFINE_ROWS) * channels + c, mask=used, other=0)
        d_shift = tl.load(sums + n * channels + c, mask=c < channels, other=0)
        d_scale = tl.load(sums + cells + n * channels + c, mask=c < channels, other=0)
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
            d_before = tl.sum(d_out[:, None] * weights, 0)
            if RELU:
                d_before = tl.where(after > 0, d_before, 0)
            else:
                d_before = d_before * (1 - after * after)
            tl.store(d_hidden + n * units + unit, d_before, mask=known)
            if SOURCE == CORRELATION:
                used = known[:, None, None] & (i < K) & (j < K)
                weights = tl.load(w1 + unit[:, None, None] * (K * K) + i * K + j, mask=used, other=0)
                found += tl.sum(d_before[:, None, None] * weights, 0)
        if SOURCE == CORRELATION:
            square = (k < K) & (row < K)[None, :]
            tl.store(d_v + n * K * K + k * K + row[None, :], found + tl.trans(found), mask=square)


@triton.jit
def cell_gradients(
    statistics,
    sums,
    weight,
    kernel,
    ratios,
    z,
    d_v,
    kinds,
    k,
    n,
    c,
    used,
    samples,
    channels,
    groups,
    reduced,
    K: tl.constexpr,
    SOURCE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    EPS: tl.constexpr,
):
    """For each (k, n, c), gradients of offset and variance, the cell's parts of those of weight_k and of the kernel, that
    of the shift (the same for every k), and the offset. What weight has one row for stands where k is 0, or is a part."""
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
    statistics,
    sums,
    weight,
    kernel,
    ratios,
    z,
    d_v,
    grads,
    d_weight,
    d_bias,
    d_kernel,
    kinds,
    kind,
    block,
    samples,
    channels,
    groups,
    set_groups,
    reduced,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    EPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SETS: tl.constexpr,
):
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
        d_offset, d_var, d_gain, d_factor, d_shift, _ = cell_gradients(
            statistics,
            sums,
            weight,
            kernel,
            ratios,
            z,
            d_v,
            kinds,
            k,
            n[None, :, :],
            c[None, :, :],
            (k < K) & exists[None, :, :],
            samples,
            channels,
            groups,
            reduced,
            K,
            SOURCE,
            MIX_STATISTICS,
            AFFINE_ROWS,
            EPS,
        )
        offsets += tl.where(chosen, d_offset, 0)
        variances += tl.where(chosen, d_var, 0)
        if kind == BATCH:
            gains += d_gain
            shifts += tl.where(k == 0, d_shift, 0)
            kernels += d_factor
    base, gap, _, _ = sets_of(kind, samples, channels, groups, 2)
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
    statistics,
    sums,
    weight,
    kernel,
    ratios,
    z,
    d_v,
    grads,
    d_weight,
    d_bias,
    d_kernel,
    kinds,
    samples,
    channels,
    groups,
    reduced,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    EPS: tl.constexpr,
    POOLS: tl.constexpr,
    COUNT: tl.constexpr,
    MEMBERS: tl.constexpr,
    SETS: tl.constexpr,
    LAYER_MEMBERS: tl.constexpr,
    LAYER_SETS: tl.constexpr,
    GROUP_MEMBERS: tl.constexpr,
    GROUP_SETS: tl.constexpr,
):
    """Sums over samples, and over the channels of ln's and gn's sets: one kind for each program of the second axis."""
    block = tl.program_id(0)
    for place in tl.static_range(COUNT):
        if tl.program_id(1) == place:
            if (POOLS >> (3 * place)) & 7 == BATCH:
                pool_set_gradients(
                    statistics,
                    sums,
                    weight,
                    kernel,
                    ratios,
                    z,
                    d_v,
                    grads,
                    d_weight,
                    d_bias,
                    d_kernel,
                    kinds,
                    BATCH,
                    block,
                    samples,
                    channels,
                    groups,
                    1,
                    reduced,
                    K,
                    ROWS,
                    SOURCE,
                    MIX_STATISTICS,
                    AFFINE_ROWS,
                    EPS,
                    MEMBERS,
                    SETS,
                )
            elif (POOLS >> (3 * place)) & 7 == LAYER:
                pool_set_gradients(
                    statistics,
                    sums,
                    weight,
                    kernel,
                    ratios,
                    z,
                    d_v,
                    grads,
                    d_weight,
                    d_bias,
                    d_kernel,
                    kinds,
                    LAYER,
                    block,
                    samples,
                    channels,
                    groups,
                    1,
                    reduced,
                    K,
                    ROWS,
                    SOURCE,
                    MIX_STATISTICS,
                    AFFINE_ROWS,
                    EPS,
                    LAYER_MEMBERS,
                    LAYER_SETS,
                )
            else:
                pool_set_gradients(
                    statistics,
                    sums,
                    weight,
                    kernel,
                    ratios,
                    z,
                    d_v,
                    grads,
                    d_weight,
                    d_bias,
                    d_kernel,
                    kinds,
                    GROUP,
                    block,
                    samples,
                    channels,
                    groups,
                    groups,
                    reduced,
                    K,
                    ROWS,
                    SOURCE,
                    MIX_STATISTICS,
                    AFFINE_ROWS,
                    EPS,
                    GROUP_MEMBERS,
                    GROUP_SETS,
                )


@triton.jit
def moment_gradients(
    statistics,
    sums,
    weight,
    kernel,
    ratios,
    z,
    d_v,
    grads,
    d_hidden,
    w1,
    kinds,
    samples,
    channels,
    groups,
    reduced,
    units,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SOURCE: tl.constexpr,
    MIX_STATISTICS: tl.constexpr,
    AFFINE_ROWS: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """A cell's gradients of m and s: with d_offset, d_var and their means over its set in every normalizer k,
    d_m = sum_k d_offset - mean d_offset + 2 mean d_var * offset and d_s = sum_k mean d_var.

    The set of `in` is the cell itself. The running averages are no means of these cells: their means count as 0.
    """
    A: tl.constexpr = statistics.dtype.element_ty
    n = tl.cast(tl.program_id(0), tl.int64)
    k = tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    c = channel[None, :]
    used = (k < K) & (c < channels)
    d_offset, d_var, _, _, _, offset = cell_gradients(
        statistics,
        sums,
        weight,
        kernel,
        ratios,
        z,
        d_v,
        kinds,
        k,
        n,
        c,
        used,
        samples,
        channels,
        groups,
        reduced,
        K,
        SOURCE,
        MIX_STATISTICS,
        AFFINE_ROWS,
        EPS,
    )
    kind = kind_of(kinds, k)
    base, gap, stride, size = sets_of(kind, samples, channels, groups, 2)
    at = grads + base + n * stride + c // size
    pooled = used & (kind != INSTANCE) & (kind != RUNNING)
    mean_offset = tl.load(at, mask=pooled, other=0)
    mean_var = tl.load(at + gap, mask=pooled, other=0)
    alone = kind == INSTANCE
    mean_var = tl.where(alone, d_var, mean_var)
    d_mean = d_offset - tl.where(alone, d_offset, mean_offset) + 2 * mean_var * offset
    total = tl.sum(tl.where(used, d_mean, 0), 0)
    if SOURCE == POOLED:
        for start in range(0, units, UNITS):
            unit = (start + tl.arange(0, UNITS))[:, None]
            known = (unit < units) & (c < channels)
            weights = tl.load(w1 + tl.cast(unit, tl.int64) * channels + c, mask=known, other=0)
            total += tl.sum(weights * tl.load(d_hidden + n * units + unit, mask=unit < units, other=0), 0)
    cell = n * channels + channel
    tl.store(grads + cell, total, mask=channel < channels)
    cells = tl.cast(samples, tl.int64) * channels
    tl.store(grads + cells + cell, tl.sum(tl.where(used, mean_var, 0), 0).to(A), mask=channel < channels)


@triton.jit
def gate_gradients(
    inputs,
    hidden,
    d_hidden,
    d_logits,
    d_w1,
    d_b1,
    d_w2,
    d_b2,
    samples,
    units,
    width,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SAMPLES: tl.constexpr,
    UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """The gate's gradients, summed over samples: a block of w1 each, and the others where its second axis begins."""
    A: tl.constexpr = inputs.dtype.element_ty
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[None, :]
    i = (tl.program_id(1) * INPUTS + tl.arange(0, INPUTS))[None, :]
    row = tl.arange(0, ROWS)[None, :]
    first = tl.zeros([UNITS, INPUTS], A)
    first_bias = tl.zeros([SAMPLES, UNITS], A)
    last = tl.zeros([ROWS, UNITS], A)
    last_bias = tl.zeros([SAMPLES, ROWS], A)
    for start in range(0, samples, SAMPLES):
        n = tl.cast(start + tl.arange(0, SAMPLES), tl.int64)[:, None]
        known = (n < samples) & (unit < units)
        d_before = tl.load(d_hidden + n * units + unit, mask=known, other=0)
        after = tl.load(hidden + n * units + unit, mask=known, other=0)
        value = tl.load(inputs + n * width + i, mask=(n < samples) & (i < width), other=0)
        d_out = tl.load(d_logits + n * K + row, mask=(n < samples) & (row < K), other=0)
        first += tl.sum(d_before[:, :, None] * value[:, None, :], 0)
        first_bias += d_before
        last += tl.sum(d_out[:, :, None] * after[:, None, :], 0)
        last_bias += d_out
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    row = tl.arange(0, ROWS)
    known = unit < units
    at = tl.cast(unit, tl.int64)[:, None] * width + i
    tl.store(d_w1 + at, first, mask=known[:, None] & (i < width))
    if tl.program_id(1) == 0:
        tl.store(d_b1 + unit, tl.sum(first_bias, 0), mask=known)
        tl.store(d_w2 + row[:, None] * units + unit[None, :], last, mask=(row < K)[:, None] & known[None, :])
        if tl.program_id(0) == 0:
            tl.store(d_b2 + row, tl.sum(last_bias, 0), mask=row < K)


@triton.jit
def logit_gradients(
    d_logits, d_own, d_var_own, samples, K: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr
):
    """(2, N, K) -> (K,) of both kinds of logits, added up over the samples; the second program is for the variances."""
    A: tl.constexpr = d_logits.dtype.element_ty
    which = tl.cast(tl.program_id(0), tl.int64)
    row = tl.arange(0, ROWS)
    sums = tl.zeros([SAMPLES, ROWS], A)
    for start in range(0, samples, SAMPLES):
        n = tl.cast(start + tl.arange(0, SAMPLES), tl.int64)[:, None]
        used = (n < samples) & (row < K)[None, :]
        sums += tl.load(d_logits + (which * samples + n) * K + row[None, :], mask=used, other=0)
    total = tl.sum(sums, 0)
    if tl.program_id(0) == 0:
        tl.store(d_own + row, total, mask=row < K)
    else:
        tl.store(d_var_own + row, total, mask=row < K)
