"""Launches all kernels of a layer, one way, in one call of C++: host/launches.cpp, compiled when first used."""

import functools
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from en.native.cache import compiled_library

SOURCE = Path(__file__).with_name("host") / "launches.cpp"


@functools.cache
def is_there() -> bool:
    """Tells whether the C++ is there, or warns that it is not."""
    try:
        compiled_library(SOURCE, "en_launches")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"en.norm launches kernels one by one, which is slower: {reason}", RuntimeWarning, stacklevel=2)
        return False
    return True


def agrees(program: Tensor) -> bool:
    """Tells whether the driver knows the functions of a program (int64) by just its parameters."""
    return torch.ops.en_norm_gpu.agrees.default(program)  # type: ignore[no-any-return]


def launch(tensors: Sequence[Tensor], program: Tensor, stream: int) -> bool:
    """Launches a program on tensors, and tells whether it could. Raises RuntimeError for an error of the driver."""
    return torch.ops.en_norm_gpu.launch.default(tensors, program, stream)  # type: ignore[no-any-return]
