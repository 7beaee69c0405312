"""A layer in a graph of torch.compile on a CPU: what lies between the passes is an operator of C++ each way.

    forward     m, s = moments of X;  scale, shift = coefficients(m, s);  Y = scale (X - m) + shift
    backward    d_scale, d_shift = sums of dY (X - m) and dY;  slope, offset = coefficients_backward(d_scale, d_shift);
                dX = scale dY + slope (X - m) + offset

The passes over X are torch's operations, which the compiler fuses with their neighbours, in any layout. Of the layers
only those that mix several normalizers come this way: the others are few operations. `trained_pixels`, which a graph
may not look at, is read by the operators.
"""

import functools
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from en.norm.kernels import cpu
from en.norm.kernels.plan import OWN, RATIOS, STATISTICS, NativePlan
from en.norm.statistics import full_precision, moments_dtype


class Layer(Protocol):
    """Declares what is asked of a layer whose plan has thresholds: see en.norm.combined.CombinedNormalizer."""

    trained_pixels: Tensor

    @property
    def learns(self) -> bool: ...
    def learn(self, deciding: Tensor) -> None: ...
    def refuse_single_value(self, samples: int, pixels: int) -> None: ...
    def track(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None: ...
    def observe(self, ratios: Tensor) -> None: ...


def plan_of(layer: Any, x: Tensor) -> NativePlan | None:
    """The plan by which operators compute the layer in the graph that is being recorded; None for its plain form.

    That is the one for maps of 0 pixels, with thresholds, of a layer that mixes normalizers and whose parameters and
    averages are such as the operators know. Programs of torch.export have no operators.
    """
    recorded = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    if not recorded or x.device.type != "cpu" or x.numel() == 0 or not is_on(type(layer), x.dtype):
        return None
    plan: NativePlan | None = layer.native_plan(0)
    if plan is None or plan.thresholds is None or not plan.takes(x) or type(x) not in OWN:
        return None
    parts = (*plan.parameters, *(plan.running or ())[:2])
    known = (type(part) in OWN and part.device == x.device and part.is_contiguous() for part in parts)
    return plan if all(known) else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_on(kind: type, dtype: torch.dtype) -> bool:
    """Tells whether layers of a class and inputs of a type take the operators, where a graph is recorded now.

    Transforms of torch.func want to see each operation, and a subclass may compute something else than the plan that it
    inherits.
    """
    if cpu.native_in_graphs("cpu") == "nothing" or cpu.native_parts(dtype) != "layers":
        return False
    register()
    return "native_plan" in vars(kind) and not torch._C._are_functorch_transforms_active()


def normalize(layer: Layer, plan: NativePlan, x: Tensor) -> Tensor:
    """The layer's output for x (N, C, H, W); the layer learns of the batch what it does in its plain form."""
    samples, pixels = x.shape[0], x.shape[2] * x.shape[3]
    of_batch = plan.training and plan.running is not None
    if of_batch:
        layer.refuse_single_value(samples, pixels)
    running = plan.running[:2] if plan.running and not of_batch else (None, None)
    settings, keep = (*plan.settings(), *(plan.thresholds or ())), torch.is_grad_enabled()
    with full_precision("cpu"):
        values = x.to(moments_dtype(x.dtype))
        with torch.no_grad():
            var, mean = torch.var_mean(values, (2, 3), correction=0, keepdim=True)
            scale, shift, ratios, batch, decided, saved = torch.ops.en_norm.coefficients.default(
                mean, var, plan.parameters, *running, layer.trained_pixels, pixels, keep, *settings
            )
        y = mapped(values, mean, var, scale, shift, saved, decided, pixels, settings, *plan.parameters)
    if of_batch:
        layer.track(batch[0], batch[1], samples * pixels)
    layer.observe(ratios)
    if layer.learns:
        layer.learn(decided)
    return y.to(x.dtype)  # type: ignore[no-any-return]


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def mapped(*inputs: Any) -> Tensor:
    """_Map as one node of Dynamo's graph: of a function of autograd it makes graphs within the graph, which torch's
    DDPOptimizer has refused to cut into buckets."""
    return _Map.apply(*inputs)  # type: ignore[no-any-return]


class _Map(torch.autograd.Function):
    """The affine map, with the gradients of the whole layer."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        scale: Tensor,
        shift: Tensor,
        saved: Tensor,
        decided: Tensor,
        pixels: int,
        settings: tuple[Any, ...],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, scale, saved, decided, *parameters)
        ctx.pixels, ctx.settings = pixels, settings  # type: ignore[attr-defined]
        return torch.addcmul(shift, x - mean, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, scale, saved, decided, *parameters = ctx.saved_tensors  # type: ignore[attr-defined]
        settings = (ctx.pixels, *ctx.settings)  # type: ignore[attr-defined]
        centred = x - mean
        d_shift, d_scale = dy.sum((2, 3), keepdim=True), (dy * centred).sum((2, 3), keepdim=True)
        slope, offset, grads = torch.ops.en_norm.coefficients_backward.default(
            d_scale, d_shift, mean, var, saved, decided, parameters, *settings
        )
        dx = torch.addcmul(torch.addcmul(offset, centred, slope), dy, scale)
        return dx, None, None, None, None, None, None, None, None, *grads


@functools.cache
def register() -> None:
    """Tells torch of what shape the operators' results are, once they are loaded."""
    torch.library.register_fake("en_norm::coefficients")(fake_coefficients)
    torch.library.register_fake("en_norm::coefficients_backward")(fake_backward)


def fake_coefficients(
    mean: Tensor,
    var: Tensor,
    parameters: list[Tensor],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    trained_pixels: Tensor,
    pixels: int,
    keep: bool,
    kinds: list[int],
    groups: list[int],
    absent: int,
    source: int,
    reduced: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    """Scale, shift, ratios, batch, decided and saved of the operator, without values."""
    samples, channels, rows = mean.shape[0], mean.shape[1], mean.shape[0] * len(kinds)
    pooled = sum(number for kind, number in zip(kinds, groups, strict=True) if kind == STATISTICS["gn"])
    of_ratios = reduced + len(kinds) if RATIOS[source] == "correlation" else len(parameters) - 3
    size = rows * (1 + of_ratios) + 2 * channels + 2 * samples * pooled  # as saved_parts of normalizers.cpp
    return (
        mean.new_empty((samples, channels, 1, 1)),
        mean.new_empty((samples, channels, 1, 1)),
        mean.new_empty((samples, len(kinds))),
        mean.new_empty((2 if STATISTICS["bn"] in kinds else 0, channels)),
        trained_pixels.new_empty(()),
        mean.new_empty((size if keep else 0,)),
    )


def fake_backward(
    d_scale: Tensor,
    d_shift: Tensor,
    mean: Tensor,
    var: Tensor,
    saved: Tensor,
    decided: Tensor,
    parameters: list[Tensor],
    *_: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Slope, offset and the parameters' gradients of the operator, without values."""
    return torch.empty_like(mean), torch.empty_like(mean), [torch.empty_like(part) for part in parameters]
