"""The four passes over (N, C, H, W) that a normalizer needs: two forward and two backward, as batch normalization has.

With m, s = mean and biased variance of X over (H, W), stored as `stats`, and Y = scale * (X - m) + shift:

    moments          X            -> stats
    affine           X            -> Y
    gradient_sums    dY, X        -> sum of dY, sum of dY * (X - m), over (H, W)
    input_gradient   dY, X        -> dX = scale * (dY - mean dY) + (d_mean + 2 d_var (X - m)) / (H W)

`stats` is (4, N, C): m, s, a centre near m, and m minus that centre. X is centred before it is scaled, in two steps, so
that a huge mean with a small spread stays accurate: float32 holds 1e4 + 1e-4 no better than 1e4.

In torch's operations, for every device; cpu.py has them in C++. Nothing here is differentiable: autograd.py puts the
gradient together.
"""

import torch
from torch import Tensor

from en.norm.statistics import moments_dtype


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """`x` without gaps, NCHW or channels_last: as `like` is, or as `x` suggests; `x` itself if it is so already."""
    like = x if like is None else like
    if like.is_contiguous():
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last) if like.stride(1) == 1 else x.contiguous()


def moments(x: Tensor) -> Tensor:
    """`stats` of a dense (N, C, H, W), in the moments' type."""
    values = x.to(moments_dtype(x.dtype))
    if x.is_cuda:  # Welford's in one pass there; on a CPU it is 7 to 30 times slower than the two passes below
        var, mean = torch.var_mean(values, (2, 3), correction=0)
        return torch.stack([mean, var, mean, torch.zeros_like(mean)])
    centre = values.mean((2, 3))
    centred = values - _per_pixel(centre)
    rest = centred.mean((2, 3))
    var = centred.sub_(_per_pixel(rest)).square_().mean((2, 3))
    return torch.stack([centre + rest, var, centre, rest])


def affine(x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Y in x's type; scale and shift (N, C), contiguous."""
    _, _, centre, rest = stats
    shift = torch.addcmul(shift, scale, rest, value=-1)
    return torch.addcmul(_per_pixel(shift), x - _per_pixel(centre), _per_pixel(scale)).to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    """(2, N, C): sums over (H, W) of dY and of dY * (X - m); dy as dense as x and of its type."""
    _, _, centre, rest = stats
    total = dy.sum((2, 3), dtype=stats.dtype)
    dot = (x - _per_pixel(centre)).mul_(dy).sum((2, 3))
    return torch.stack([total, torch.addcmul(dot, rest, total, value=-1)])


def input_gradient(
    dy: Tensor, x: Tensor, stats: Tensor, sum_dy: Tensor, scale: Tensor, d_mean: Tensor, d_var: Tensor
) -> Tensor:
    """dX in x's type; the gradients with respect to m and s are (N, C), contiguous, and so are sum_dy and scale."""
    _, _, centre, rest = stats
    pixels = x.shape[2] * x.shape[3]
    slope = 2 / pixels * d_var
    offset = torch.addcmul(d_mean, scale, sum_dy, value=-1).div_(pixels).addcmul_(slope, rest, value=-1)
    dx = torch.addcmul(_per_pixel(offset), x - _per_pixel(centre), _per_pixel(slope))
    return dx.addcmul_(dy.to(dx.dtype), _per_pixel(scale)).to(x.dtype)


def _per_pixel(values: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, 1), to broadcast over (N, C, H, W)."""
    return values[..., None, None]
