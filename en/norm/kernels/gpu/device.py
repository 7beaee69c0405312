"""Decides what of a layer runs in Triton, on which tensors; imports Triton when one on a GPU is first normalized."""

import functools
import warnings
from operator import attrgetter, methodcaller
from types import ModuleType

import torch
from torch import Tensor

from en.norm.kernels.again import Again
from en.norm.kernels.plan import OWN, RATIOS, NativePlan, chosen_parts
from en.norm.statistics import moments_dtype

BY_DEFAULT = "layers"
"""Default on a GPU where EN_NATIVE is not set: layers, passes or nothing. Measured on an H100: see ../SPEED.md."""

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLACE, DTYPE = methodcaller("get_device"), attrgetter("dtype")


def chosen() -> str:
    """Returns what runs in Triton: layers, passes or nothing."""
    return chosen_parts(BY_DEFAULT)


def on_gpu(x: Tensor) -> bool:
    """Tells whether `x` is a tensor of its own on a GPU: no subclass, and none that only stands for values."""
    return x.is_cuda and type(x) in OWN


def can_take(x: Tensor) -> bool:
    """Tells whether the four passes can run in Triton on `x`."""
    return chosen() != "nothing" and is_taken(x)


def is_taken(x: Tensor) -> bool:
    """Tells whether Triton's kernels take `x`, if they are to."""
    if not on_gpu(x) or x.dtype not in TYPES:
        return False
    samples, channels, height, width = x.shape
    # A cell's pixels are counted in 32 bits.
    return 0 < height * width < 2**31 and samples * channels > 0 and works(x.device, x.dtype)


def can_run(plan: NativePlan, x: Tensor) -> bool:
    """Tells whether the kernels know this layer's ratios, and take `x`, the parameters and the averages."""
    if plan.ratios not in RATIOS or not is_taken(x) or chosen() != "layers":
        return False
    if x.numel() >= 2**31 and x.shape[0] * x.shape[1] >= 2**31:  # and so are cells, between the passes
        return False
    parts = (*plan.parameters, *(plan.running or ())[:2])
    return (
        OWN.issuperset(map(type, parts))
        and {x.get_device()} == set(map(PLACE, parts))
        and {moments_dtype(x.dtype)} == set(map(DTYPE, parts))
    )


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


def normalize(plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor | None]:
    """As layer.normalize()."""
    return triton_layer().normalize(plan, x, again)  # type: ignore[no-any-return]


@functools.cache
def triton_layer() -> ModuleType:
    """The module that has whole layers."""
    from en.norm.kernels.gpu import layer

    return layer
