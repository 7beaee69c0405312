"""Decides what of a layer runs in Triton, on which tensors; imports Triton when one on a GPU is first normalized."""

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor

from en.norm.kernels.again import Again
from en.norm.kernels.plan import RATIOS, NativePlan, chosen_parts

BY_DEFAULT = "layers"
"""Default on a GPU where EN_NATIVE is not set: layers, passes or nothing. Measured on an H100: see ../SPEED.md."""

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def chosen() -> str:
    """Returns what runs in Triton: layers, passes or nothing."""
    return chosen_parts(BY_DEFAULT)


def on_gpu(x: Tensor) -> bool:
    """Tells whether `x` is a tensor of its own on a GPU: no subclass, and none that only stands for values."""
    return x.is_cuda and type(x) in (Tensor, torch.nn.Parameter)


def can_take(x: Tensor) -> bool:
    """Tells whether the four passes can run in Triton on `x`."""
    if not on_gpu(x) or x.numel() == 0 or x.dtype not in TYPES or chosen() == "nothing":
        return False
    if x.shape[2] * x.shape[3] >= 2**31:  # a cell's pixels are counted in 32 bits
        return False
    return works(x.device, x.dtype)


def can_run(plan: NativePlan, x: Tensor) -> bool:
    """Tells whether the kernels know this layer's ratios, and take `x`, the parameters and the averages."""
    if plan.ratios not in RATIOS or not can_take(x) or chosen() != "layers":
        return False
    if x.shape[0] * x.shape[1] >= 2**31:  # and so are cells, between the passes
        return False
    parts = (*plan.parameters, *(plan.running or ())[:2])
    return plan.takes(x) and all(on_gpu(part) and part.device == x.device for part in parts)


@functools.cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Tells whether Triton can compile and launch a kernel for values of this type; warns where it cannot."""
    try:
        triton_passes().moments(torch.ones(1, 1, 1, 1, device=device, dtype=dtype))
    except Exception as error:  # of Triton, of the compilers that it starts, or of the driver
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        warnings.warn(
            f"en.norm uses torch's operations on {device}, not Triton's kernels: {reason}", RuntimeWarning, stacklevel=2
        )
        return False
    return True


def triton_passes() -> ModuleType:
    """The module that has the four passes: see ../passes.py."""
    from en.norm.kernels.gpu import passes

    return passes


def normalize(plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor]:
    """The normalized x, and the ratios (N, K) without a gradient; updates the running averages in training."""
    from en.norm.kernels.gpu import layer

    return layer.normalize(plan, x, again)
