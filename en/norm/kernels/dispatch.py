"""Which form of a layer runs: the fastest that can take it and its input.

    native     the whole layer, where it has a plan: an operator of C++ each way on a CPU, Triton's kernels on a GPU
    autograd   four passes over (N, C, H, W) and autograd between them: every layer, on every device
    graphs     under torch.compile on a CPU: the passes in torch's operations, and an operator of C++ between them
    plain      the layer's definition: else under torch.compile, and for torch.func, torch.export, torch.jit.trace,
               make_fx and other dispatch modes, which want to see each operation; and for derivatives of derivatives

The four passes are C++ on a CPU and Triton's kernels on a GPU, where those can be compiled, and torch's operations
elsewhere. SPEED.md says what each form gives.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from en.norm.kernels import again, autograd, cpu
from en.norm.kernels.again import Again
from en.norm.kernels.gpu import device as gpu
from en.norm.kernels.plan import NativePlan
from en.norm.statistics import is_tracing


class Layer(again.Layer, Protocol):
    """Declares what normalize() asks of a layer: see en.norm.base.Normalizer."""

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]: ...
    def native_plan(self, pixels: int) -> NativePlan | None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def see(self, x: Tensor) -> None: ...


class Device(Protocol):
    """A module that runs whole layers on one kind of device."""

    def can_run(self, plan: NativePlan, x: Tensor) -> bool: ...
    def normalize(self, plan: NativePlan, x: Tensor, again: Again) -> tuple[Tensor, Tensor | None]: ...


DEVICES: tuple[Device, ...] = (gpu, cpu)


def normalize(layer: Layer, x: Tensor) -> Tensor:
    """The layer's output for x (N, C, H, W), with x's type and memory format, in the fastest form that can take it."""
    if torch.compiler.is_compiling():
        from en.norm.kernels import graphs  # which imports the compiler

        planned = graphs.plan_of(layer, x)
        return layer.plain(x) if planned is None else graphs.normalize(layer, planned, x)  # type: ignore[arg-type]
    if is_looked_into(x):
        return layer.plain(x)
    layer.see(x)
    plan = native_plan(layer, x.shape[2] * x.shape[3])
    if plan is not None and plan.is_batch_norm and plan.takes(x):
        layer.observe(x.new_ones(x.shape[0], 1))
        return plan.batch_norm(x)
    again = Again(layer, layer.training, layer.remembered())
    for device in DEVICES:
        if plan is not None and device.can_run(plan, x):
            y, ratios = device.normalize(plan, x, again)
            if ratios is not None:
                layer.observe(ratios)
            return y
    return autograd.normalize(x, layer.coefficients, list(layer.parameters()), again)


def is_looked_into(x: Tensor) -> bool:
    """Tells whether something records, transforms or intercepts operations on `x`, or `x` only stands for values.

    autocast, profilers, DDP, FSDP2, checkpointing and torch.device() do neither.
    """
    return (
        x.is_meta
        or type(x) not in (Tensor, nn.Parameter)
        or is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def native_parts(device_type: str = "cpu") -> str:
    """Returns what runs as this package's own code on a kind of device: layers, passes or nothing."""
    return cpu.native_parts() if device_type == "cpu" else gpu.chosen()


def native_plan(layer: Layer, pixels: int) -> NativePlan | None:
    """The plan that the layer's own class defines: a subclass may compute something else than the plan it inherits."""
    return layer.native_plan(pixels) if "native_plan" in vars(type(layer)) else None
