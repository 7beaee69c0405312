"""Sets of cells that share a mean and a variance, and where these lie: for the Triton kernels on (N, K, C) and less.

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
STATIC = tl.constexpr(1)


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
