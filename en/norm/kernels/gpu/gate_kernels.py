"""Gradients of what ratios come from, the gate's parameters or logits, summed over the samples: parts of a kernel."""

import triton
import triton.language as tl


@triton.jit
def gate_gradients(
    inputs, hidden, d_hidden, d_logits, d_w1, d_b1, d_w2, d_b2, block, samples, units,
    K: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr, GATE_SCALE: tl.constexpr, UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
):  # fmt: skip
    """The gate's gradients, summed over samples, of a block of hidden units; INPUTS is at least their K * K inputs."""
    A: tl.constexpr = inputs.dtype.element_ty
    width: tl.constexpr = K * K
    unit = (block * UNITS + tl.arange(0, UNITS))[None, :]
    i = tl.arange(0, INPUTS)[None, :]
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
    unit = block * UNITS + tl.arange(0, UNITS)
    row = tl.arange(0, ROWS)
    known = unit < units
    tl.store(d_w1 + unit[:, None] * width + i, first, mask=known[:, None] & (i < width))
    tl.store(d_b1 + unit, tl.sum(first_bias, 0), mask=known)
    tl.store(d_w2 + row[:, None] * units + unit[None, :], GATE_SCALE * last, mask=(row < K)[:, None] & known[None, :])
    if block == 0:
        tl.store(d_b2 + row, tl.sum(last_bias, 0), mask=row < K)


@triton.jit
def logit_gradients(
    d_logits, d_own, d_var_own, which, samples, K: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr
):
    """(2, N, K) -> (K,) of both kinds of logits, added up over the samples; the second one is for the variances."""
    A: tl.constexpr = d_logits.dtype.element_ty
    row = tl.arange(0, ROWS)
    sums = tl.zeros([SAMPLES, ROWS], A)
    for start in range(0, samples, SAMPLES):
        n = tl.cast(start + tl.arange(0, SAMPLES), tl.int64)[:, None]
        used = (n < samples) & (row < K)[None, :]
        sums += tl.load(d_logits + (which * samples + n) * K + row[None, :], mask=used, other=0)
    total = tl.sum(sums, 0)
    if which == 0:
        tl.store(d_own + row, total, mask=row < K)
    else:
        tl.store(d_var_own + row, total, mask=row < K)
