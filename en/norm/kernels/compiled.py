"""The normalizers of cpu/, compiled on first use and kept in the user's cache.

Nothing here is needed for right results: passes.py and statistics.py have everything in torch's operations too.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from en.norm.kernels.cache import kept_library

FOLDER = Path(__file__).with_name("cpu")
FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
FLAGS += ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
SWITCH = "EN_COMPILED"
"""Environment variable: 0 keeps to torch's own operations."""

PARAMETERS = ("weight", "bias", "kernel", "w1", "b1", "w2", "b2", "logits", "var_logits")
"""What a mixed normalizer may have: see `mixed` in cpu/normalizers.cpp."""

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def library_for(x: Tensor) -> ctypes.CDLL | None:
    """The compiled functions, if they can be used on `x`; None if not, or where they are switched off or do not compile."""
    usable = x.numel() and x.dtype in TYPES and plain_cpu(x)
    library = _library(os.environ.get(SWITCH, "1")) if usable else None
    if x.dtype == torch.float16 and library is not None and not library.en_has_float16():
        return None
    return library


def plain_cpu(x: Tensor) -> bool:
    """Whether `x` is a tensor of its own on the CPU: not a subclass, and not one that only stands for values."""
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


class Shape(ctypes.Structure):
    """`shape` of cpu/passes.hpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("samples", "channels", "pixels", "threads")] + [
        ("channels_last", ctypes.c_bool)
    ]


def run(function: Callable[..., object], x: Tensor, *tensors: Tensor) -> None:
    """Calls one of the passes for a dense x (N, C, H, W) with where the tensors lie."""
    n, c, h, w = x.shape
    shape = Shape(n, c, h * w, torch.get_num_threads(), not x.is_contiguous())
    function(ctypes.c_int64(TYPES[x.dtype]), ctypes.byref(shape), *(ctypes.c_void_p(part.data_ptr()) for part in tensors))


class Mixed(ctypes.Structure):
    """`mixed` of cpu/normalizers.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "channels", "pixels", "threads", "channels_last", "kinds")),
        *((name, ctypes.c_int64 * 4) for name in ("kind", "groups")),
        *((name, ctypes.c_int64) for name in ("source", "reduced", "hidden", "activation", "statistics", "affine_rows", "update")),
        *((name, ctypes.c_double) for name in ("eps", "share")),
        *((name, ctypes.c_void_p) for name in PARAMETERS),
        *((f"d_{name}", ctypes.c_void_p) for name in PARAMETERS),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_var", "x", "y", "dy", "dx", "saved")),
    ]


def refuse_second_derivative() -> None:
    """Raises RuntimeError inside a backward pass that is itself recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a normalizer's gradient cannot be differentiated again (create_graph=True); set EN_COMPILED=0 and use layer.plain(x)"
        )


@functools.cache
def _library(switch: str) -> ctypes.CDLL | None:
    if switch == "0":
        return None
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    try:
        if compiler is None:
            raise OSError("there is no g++ and no clang++")
        library = _compiled(compiler)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"en.norm uses torch's operations, which are slower on a CPU: {reason}", RuntimeWarning, stacklevel=2)
        return None
    check_layout(library)
    return library


def check_layout(library: ctypes.CDLL) -> None:
    """Raises TypeError where a structure is not as long as the library's: each would read the other's memory wrongly."""
    for here, there in ((Shape, library.en_shape_size()), (Mixed, library.en_mixed_size())):
        if ctypes.sizeof(here) != there:
            raise TypeError(f"en.norm: {here.__name__} has {ctypes.sizeof(here)} bytes: expected {there}, as in cpu/")


def _compiled(compiler: str) -> ctypes.CDLL:
    """The library for this source, compiler and processor, compiled unless it is in the cache."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    key = "\n".join([*(source.read_text() for source in sorted(FOLDER.iterdir())), *FLAGS, version, _processor()])

    def make(target: Path) -> None:
        command = [compiler, *FLAGS, str(FOLDER / "normalizers.cpp"), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    return kept_library(f"normalizers-{hashlib.sha256(key.encode()).hexdigest()[:16]}", make)


def _processor() -> str:
    """What -march=native depends on: a cache on a shared disk serves machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(kinds)})])
