"""The normalizers on a CPU, in C++ that is compiled when first used: the four passes, and a whole layer in one call each way.

The passes are those of passes.py. The whole layer is what autograd.py makes of them and of the coefficients of single.py,
switchable.py and exemplar.py; it exists because on small inputs the time goes into calls: some hundred operations on (N, K, C)
take longer than the four passes over (N, C, H, W). Nothing here is needed for right results; the tests compare both.
"""

import ctypes
import functools
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.norm.kernels.cache import compiled_library
from en.norm.kernels.passes import dense, refuse_second_derivative
from en.norm.statistics import moments_dtype

SOURCE = Path(__file__).with_name("cpu") / "normalizers.cpp"
SWITCH = "EN_NATIVE"
"""Environment variable: 0 keeps to torch's operations, `passes` to the four passes."""

PARAMETERS = ("weight", "bias", "kernel", "w1", "b1", "w2", "b2", "logits", "var_logits")
"""What a layer may have: see `plan` in cpu/normalizers.cpp."""

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
STATISTICS = {"in": 0, "running": 1, "bn": 2, "ln": 3, "gn": 3}
RATIOS = ("correlation", "pooled", "static")
ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True)
class NativePlan:
    """What a layer computes: which statistics, where their ratios come from, what is mixed by them.

    Attributes:
        normalizers, groups, eps: as for CombinedNormalizer.
        parameters: by their names in PARAMETERS; weight and bias at least.
        ratios: correlation, pooled or static (one vector of logits, or two, for means and for variances).
        mix_statistics: as SN does; else the normalized maps are mixed.
        training: batch statistics rather than the running averages.
        running: mean, variance and count of batches, where bn is among the normalizers.
        momentum: as for CombinedNormalizer.
        activation: of the gate.
        reduced: G, groups of the convolution.
    """

    normalizers: tuple[str, ...]
    groups: int
    eps: float
    parameters: Mapping[str, Tensor]
    ratios: str
    mix_statistics: bool
    training: bool = False
    running: tuple[Tensor, Tensor, Tensor] | None = None
    momentum: float | None = None
    activation: str = "tanh"
    reduced: int = 1


def native_parts() -> str:
    """What runs as C++ on a CPU: layers, passes, or nothing, where it is switched off or cannot be compiled."""
    if library_for(torch.zeros(1)) is None:
        return "nothing"
    return "passes" if os.environ.get(SWITCH) == "passes" else "layers"


def library_for(x: Tensor) -> ctypes.CDLL | None:
    """The compiled functions, if they can be used on `x`; None if not, or where they are switched off or do not compile."""
    usable = x.numel() and x.dtype in TYPES and plain_cpu(x) and os.environ.get(SWITCH) != "0"
    library = library_or_none() if usable else None
    if x.dtype == torch.float16 and library is not None and not library.en_has_float16():
        return None
    return library


def plain_cpu(x: Tensor) -> bool:
    """Whether `x` is a tensor of its own on the CPU: not a subclass, and not one that only stands for values."""
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


@functools.cache
def library_or_none() -> ctypes.CDLL | None:
    """The compiled functions, or a warning."""
    try:
        library = compiled_library(SOURCE)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(f"en.norm uses torch's operations, which are slower on a CPU: {reason}", RuntimeWarning, stacklevel=2)
        return None
    check_layout(library)
    return library


def loaded(x: Tensor) -> ctypes.CDLL:
    library = library_for(x)
    assert library is not None
    return library


class Shape(ctypes.Structure):
    """`shape` of cpu/passes.hpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("samples", "channels", "pixels", "threads")] + [
        ("channels_last", ctypes.c_bool)
    ]


class Plan(ctypes.Structure):
    """`plan` of cpu/normalizers.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "channels", "pixels", "threads", "channels_last", "kinds")),
        *((name, ctypes.c_int64 * 4) for name in ("kind", "groups")),
        *((name, ctypes.c_int64) for name in ("source", "reduced", "hidden", "activation", "statistics", "affine_rows", "update")),
        *((name, ctypes.c_double) for name in ("eps", "share")),
        *((name, ctypes.c_void_p) for name in PARAMETERS),
        *((f"d_{name}", ctypes.c_void_p) for name in PARAMETERS),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_var", "x", "y", "dy", "dx", "saved")),
    ]


def check_layout(library: ctypes.CDLL) -> None:
    """Raises TypeError where a structure is not as long as the library's: each would read the other's memory wrongly."""
    for here, there in ((Shape, library.en_shape_size()), (Plan, library.en_plan_size())):
        if ctypes.sizeof(here) != there:
            raise TypeError(f"en.norm: {here.__name__} has {ctypes.sizeof(here)} bytes: expected {there}, as in cpu/")


# ---- the four passes of passes.py ----


def moments(x: Tensor) -> Tensor:
    stats = torch.empty((4, *x.shape[:2]), dtype=moments_dtype(x.dtype))
    run(loaded(x).en_moments, x, x, stats)
    return stats


def affine(x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    run(loaded(x).en_affine, x, x, stats, scale, shift, y)
    return y


def gradient_sums(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    sums = torch.empty((2, *x.shape[:2]), dtype=stats.dtype)
    run(loaded(x).en_gradient_sums, x, dy, x, stats, sums)
    return sums


def input_gradient(dy: Tensor, x: Tensor, stats: Tensor, sum_dy: Tensor, scale: Tensor, d_mean: Tensor, d_var: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    run(loaded(x).en_input_gradient, x, dy, x, stats, sum_dy, scale, d_mean, d_var, dx)
    return dx


def run(function: Callable[..., object], x: Tensor, *tensors: Tensor) -> None:
    """Calls one of the passes for a dense x (N, C, H, W) with where the tensors lie."""
    n, c, h, w = x.shape
    shape = Shape(n, c, h * w, torch.get_num_threads(), not x.is_contiguous())
    function(ctypes.c_int64(TYPES[x.dtype]), ctypes.byref(shape), *(ctypes.c_void_p(part.data_ptr()) for part in tensors))


# ---- a whole layer ----


def can_run(plan: NativePlan, x: Tensor) -> bool:
    """Whether the layer can run as C++ on `x`: this knows its ratios, and all else is on the CPU and of the moments' type."""
    if plan.ratios not in RATIOS or os.environ.get(SWITCH) == "passes" or library_for(x) is None:
        return False
    dtype = moments_dtype(x.dtype)
    others = [*plan.parameters.values(), *(plan.running or ())[:2]]
    return all(part.dtype == dtype and plain_cpu(part) for part in others)


def normalize(plan: NativePlan, x: Tensor) -> tuple[Tensor, Tensor]:
    """The normalized x, and the ratios (N, K) without a gradient; updates the running averages in training."""
    return _Layer.apply(plan, x, *plan.parameters.values())  # type: ignore[no-any-return]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, plan: NativePlan, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = dense(x)
        parameters = tuple(part.contiguous() for part in parameters)
        library = loaded(x)
        call = _call(plan, x, parameters)
        saved = torch.empty(library.en_saved_size(ctypes.byref(call)), dtype=moments_dtype(x.dtype))
        y = torch.empty_like(x)
        call.x, call.y, call.saved = x.data_ptr(), y.data_ptr(), saved.data_ptr()
        if plan.running is not None:
            mean, var, count = plan.running
            call.running_mean, call.running_var = mean.data_ptr(), var.data_ptr()
            if plan.training:
                count.add_(1)
                call.update, call.share = 1, 1 / count.item() if plan.momentum is None else plan.momentum
        library.en_forward(ctypes.c_int64(TYPES[x.dtype]), ctypes.byref(call))
        ctx.save_for_backward(x, saved, *parameters)
        ctx.plan = plan  # type: ignore[attr-defined]
        n, k = len(x), len(plan.normalizers)
        ratios = saved[: n * k].view(n, k).clone()
        ctx.mark_non_differentiable(ratios)
        return y, ratios

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, saved, *parameters = ctx.saved_tensors  # type: ignore[attr-defined]
        plan = ctx.plan  # type: ignore[attr-defined]
        dy = dense(dy, like=x)
        call = _call(plan, x, parameters)
        call.x, call.dy, call.saved = x.data_ptr(), dy.data_ptr(), saved.data_ptr()
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        if dx is not None:
            call.dx = dx.data_ptr()
        grads = [torch.empty_like(part) for part in parameters]
        for name, grad in zip(plan.parameters, grads, strict=True):
            setattr(call, f"d_{name}", grad.data_ptr())
        loaded(x).en_backward(ctypes.c_int64(TYPES[x.dtype]), ctypes.byref(call))
        return None, dx, *grads


def _call(plan: NativePlan, x: Tensor, parameters: tuple[Tensor, ...]) -> Plan:
    """All but the tensors that only one direction has."""
    n, c, h, w = x.shape
    kinds = [STATISTICS["running" if name == "bn" and not plan.training else name] for name in plan.normalizers]
    groups = [plan.groups if name == "gn" else 1 for name in plan.normalizers]
    hidden = plan.parameters["w1"].shape[0] if "w1" in plan.parameters else 0
    weight = plan.parameters["weight"]
    return Plan(
        samples=n,
        channels=c,
        pixels=h * w,
        threads=torch.get_num_threads(),
        channels_last=not x.is_contiguous(),
        kinds=len(kinds),
        kind=(*kinds,),
        groups=(*groups,),
        source=RATIOS.index(plan.ratios),
        reduced=plan.reduced,
        hidden=hidden,
        activation=ACTIVATIONS.index(plan.activation),
        statistics=plan.mix_statistics,
        affine_rows=weight.numel() // c,
        eps=plan.eps,
        **{name: part.data_ptr() for name, part in zip(plan.parameters, parameters, strict=True)},
    )
