"""The normalizers on a CPU, in C++ that is compiled when first used: the four passes, and whole layers in one call.

The passes are those of passes.py. A whole layer is what autograd.py makes of them and of the coefficients of single.py,
switchable.py and exemplar.py; it exists because on small inputs the time goes into calls: some hundred operations on
(N, K, C) take longer than the four passes over (N, C, H, W). Nothing here is needed for right results; the tests
compare both. The C++ is operators of torch's, `torch.ops.en_norm`, without gradients of their own.
"""

import ctypes
import functools
import subprocess
import warnings
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from en.native.cache import compiled_library
from en.norm.kernels.again import Again
from en.norm.kernels.passes import dense
from en.norm.kernels.plan import OWN, RATIOS, NativePlan, Settings, are_in_graphs, chosen_parts
from en.norm.statistics import moments_dtype

PLACE, WANTED = attrgetter("is_cpu", "dtype"), attrgetter("requires_grad")
SOURCE = Path(__file__).with_name("cpu") / "normalizers.cpp"
IN_GRAPHS = True
"""Says whether graphs of torch.compile have operators where EN_NATIVE does not say. Measured: see SPEED.md."""


def native_parts(dtype: torch.dtype = torch.float32) -> str:
    """Names what runs as C++ for an input of this type on a CPU: layers, passes, or nothing (off, or not compiled)."""
    known = dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    parts = chosen_parts("layers")
    library = library_or_none() if known and parts != "nothing" else None
    if library is None or (dtype == torch.float16 and not library.en_has_float16()):
        return "nothing"
    return parts


def native_in_graphs(device_type: str) -> str:
    """Names what is an operator of this package in graphs of torch.compile: coefficients (see graphs.py) or nothing."""
    chosen = device_type == "cpu" and are_in_graphs(IN_GRAPHS)
    return "coefficients" if chosen and native_parts() == "layers" else "nothing"


@functools.cache
def library_or_none() -> ctypes.CDLL | None:
    """The library, whose operators are registered as it is loaded, or a warning."""
    try:
        library = compiled_library(SOURCE, "en_has_float16")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(
            f"en.norm uses torch's operations, which are slower on a CPU: {reason}", RuntimeWarning, stacklevel=2
        )
        return None
    return library


def can_take(x: Tensor) -> bool:
    """Tells whether the four passes can run as C++ on `x`."""
    return on_cpu(x) and x.numel() > 0 and native_parts(x.dtype) != "nothing"


def on_cpu(x: Tensor) -> bool:
    """Tells whether `x` is a tensor of its own on the CPU: no subclass, and none that only stands for values."""
    return x.is_cpu and type(x) in OWN


# ---- the four passes of passes.py ----


def moments(x: Tensor) -> Tensor:
    stats: Tensor = torch.ops.en_norm.moments.default(x)
    return stats


def affine(x: Tensor, stats: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y: Tensor = torch.ops.en_norm.affine.default(x, stats, scale, shift)
    return y


def gradient_sums(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    sums: Tensor = torch.ops.en_norm.gradient_sums.default(dy, x, stats)
    return sums


def input_gradient(
    dy: Tensor, x: Tensor, stats: Tensor, sum_dy: Tensor, scale: Tensor, d_mean: Tensor, d_var: Tensor
) -> Tensor:
    dx: Tensor = torch.ops.en_norm.input_gradient.default(dy, x, stats, sum_dy, scale, d_mean, d_var)
    return dx


# ---- a whole layer ----


def can_run(plan: NativePlan, x: Tensor) -> bool:
    """Tells whether the C++ knows this layer's ratios, and takes `x`, the parameters and the averages."""
    if plan.ratios not in RATIOS or not on_cpu(x) or x.numel() == 0 or native_parts(x.dtype) != "layers":
        return False
    parts = (*plan.parameters, *(plan.running or ())[:2])
    return OWN.issuperset(map(type, parts)) and {(True, moments_dtype(x.dtype))} == set(map(PLACE, parts))


def normalize(plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor]:
    """The normalized x, and the ratios (N, K) without a gradient; updates the running averages in training."""
    x, parameters = dense(x), list(map(Tensor.contiguous, plan.parameters))
    arguments = (*(plan.running or (None, None, None)), -1.0 if plan.momentum is None else plan.momentum)
    settings = plan.settings()
    if torch.is_grad_enabled() and (x.requires_grad or any(map(WANTED, parameters))):
        y, ratios = _Layer.apply(x, arguments, settings, again, len(parameters), *parameters, *plan.origins)
        return y, ratios
    y, ratios, _ = torch.ops.en_norm.layer_forward.default(x, parameters, *arguments, False, *settings)
    return y, ratios


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        running: tuple[Tensor | None, Tensor | None, Tensor | None, float],
        settings: Settings,
        again: Again,
        count: int,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, ratios, saved = torch.ops.en_norm.layer_forward.default(x, inputs[:count], *running, True, *settings)
        ctx.save_for_backward(x, saved, *inputs)
        ctx.settings, ctx.again, ctx.count = settings, again, count  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(ratios)
        return y, ratios

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, saved, *inputs = ctx.saved_tensors  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            dx, *grads = ctx.again.gradients(x, dy, [x, *inputs])  # type: ignore[attr-defined]
            return dx, None, None, None, None, *grads
        parameters = inputs[: ctx.count]  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        dx, grads = torch.ops.en_norm.layer_backward.default(
            dense(dy, like=x),
            x,
            saved,
            parameters,
            wanted,
            *ctx.settings,  # type: ignore[attr-defined]
        )
        unused = [None] * (len(inputs) - len(parameters))
        return dx if wanted else None, None, None, None, None, *grads, *unused
