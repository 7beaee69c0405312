"""Every normalizer, in every type, layout and form, against its definition in float64: outputs, gradients, averages.

An error is the largest difference, relative to the largest value, and is given as a share of what the type allows: for
the output and the input's gradient some units of rounding of the input's type, and for what is accumulated over pixels,
which is done in float32 at least, some more of that type's.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from en.benchmarks.forms import FORMS, in_form
from en.benchmarks.steps import DTYPES, LAYOUTS, captured
from en.norm import NORMALIZERS, Normalizer, build_norm
from en.norm.statistics import instance_moments, moments_dtype
from gpu.parts import TYPES
from gpu.results import Report, Setup

SHAPES = ((4, 64, 1, 1), (4, 58, 7, 7), (2, 64, 56, 56))
BEYOND_INT32 = (2688, 256, 56, 56)
ROUNDINGS = {"output": 1.0, "input's gradient": 1.0, "parameters' gradients": 0.0, "averages": 0.0}
"""Allowed units of the input's type."""

ACCUMULATED = {"output": 64.0, "input's gradient": 128.0, "parameters' gradients": 1024.0, "averages": 128.0}
"""Allowed units of the type of the moments, in addition."""

Result = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Case:
    """A comparison: a normalizer on an input, in training or evaluation."""

    name: str
    shape: tuple[int, int, int, int]
    dtype: str
    training: bool
    device: str

    def layer(self) -> Normalizer:
        """With random parameters and averages, so that no 0 or 1 hides a term of the formula."""
        generator = torch.Generator().manual_seed(0)
        layer = build_norm(self.name, self.shape[1]).train(self.training)
        with torch.no_grad():
            for key, parameter in layer.named_parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (key == "weight"))
            for buffer in layer.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        return layer.to(self.device, moments_dtype(DTYPES[self.dtype]))

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype} {mode}"


@cache
def tensors(shape: tuple[int, int, int, int], dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """An input, each channel of each sample with a mean and a spread of its own, and a gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    spread, mean = (torch.randn(*shape[:2], 1, 1, generator=generator) for _ in range(2))
    x = x * (0.5 + spread.abs()) + mean
    return x.to(device, DTYPES[dtype]), dy.to(device, DTYPES[dtype])


@dataclass(frozen=True)
class Reference:
    """The definition's results in float64, and the sizes that errors are relative to."""

    result: Result
    sizes: dict[str, list[float]]


@cache
def reference(case: Case) -> Reference:
    layer, (x, dy) = case.layer().double(), tensors(case.shape, case.dtype, case.device)
    mean, var, _ = instance_moments(x.double())
    scale, _ = copy.deepcopy(layer).coefficients(mean, var, x.shape[2] * x.shape[3])
    result = forward_backward(layer, layer.plain, x.double(), dy.double())
    sizes = {what: [float(part.abs().max()) for part in parts] for what, parts in result.items()}
    # At 1 x 1 pixels the gradient of the input may be exactly zero: the difference of terms of this size.
    sizes["input's gradient"] = [max(*sizes["input's gradient"], float(scale.detach().abs().max() * dy.abs().max()))]
    largest = max(sizes["parameters' gradients"])
    sizes["parameters' gradients"] = [max(size, 0.01 * largest) for size in sizes["parameters' gradients"]]
    return Reference(result, sizes)


def forward_backward(layer: Normalizer, call: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Result:
    """Output, gradients and averages of a call of the layer."""
    x = x.detach().requires_grad_()
    y = call(x)
    torch.autograd.backward(y, dy)
    assert x.grad is not None
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters()]
    averages = [buffer for buffer in layer.buffers() if buffer.is_floating_point()]
    return {"output": [y.detach()], "input's gradient": [x.grad], "parameters' gradients": grads, "averages": averages}


def errors(case: Case, result: Result) -> dict[str, float]:
    """The largest error of each kind, as a share of what the type allows; infinite where a value is not a number."""
    expected, own = reference(case), torch.finfo(DTYPES[case.dtype]).eps
    moments = torch.finfo(moments_dtype(DTYPES[case.dtype])).eps
    found = {}
    for what, parts in result.items():
        allowed = ROUNDINGS[what] * own + ACCUMULATED[what] * moments
        worst = [
            float((got.double() - right).abs().nan_to_num(nan=math.inf).max()) / max(size, 1e-30)
            for got, right, size in zip(parts, expected.result[what], expected.sizes[what], strict=True)
        ]
        found[what] = max(worst, default=0.0) / allowed
    return found


class Tally:
    """The worst error by type of one normalizer in one form, and all cases beyond what is allowed.

    bn's are shown and not counted: what it runs is torch's own batch normalization.

    Args:
        what: is counted: the end of the figure's name. The figure comes with `finish`, when nothing was left out.
        dtypes: that there are cases of.
    """

    def __init__(self, report: Report, what: str, dtypes: Sequence[str]) -> None:
        self._report, self._what, self._dtypes = report, what, dtypes
        self.beyond = self.cases = self.tried = 0
        self.left_out = False
        self._worst: dict[str, float] = {}

    def count(self, case: Case, form: str, layout: str, found: Mapping[str, float]) -> None:
        """Counts a case."""
        self.cases += 1
        bad = {what: error for what, error in found.items() if error > 1}
        self.beyond += bool(bad) and case.name != "bn"
        if bad:
            listed = ", ".join(f"{what} {error:.3g}" for what, error in bad.items())
            self._report.note(f"beyond what is allowed: {case} {layout}, {form}: {listed}")
        self._worst[case.dtype] = max(*found.values(), self._worst.get(case.dtype, 0.0))

    def close(self, name: str, form: str) -> None:
        """Reports a normalizer in a form."""
        worst = {dtype: self._worst.get(dtype) for dtype in self._dtypes}
        self._report.row("largest error as a share of what the type allows", normalizer=name, form=form, **worst)
        self._worst = {}

    def finish(self) -> None:
        """Reports how many cases were beyond, or raised an error; unless some were left out and none was."""
        wrong = self.beyond + self.tried - self.cases
        self._report.note(f"{self.tried} cases, {wrong} beyond what is allowed or with an error")
        if wrong or not self.left_out:
            self._report.figure(f"beyond {self._what}", wrong)


@pytest.mark.parametrize("dtype", TYPES)
def test_type(dtype: str, setup: Setup, report: Report) -> None:
    """All cases of one type, as far as the time goes; en first, because Triton compiles each kernel for each type."""
    tally = Tally(report, dtype, [dtype])
    shapes = SHAPES[1:2] if setup.tiny else SHAPES
    for form in (*FORMS, "plain"):
        for name in reversed(NORMALIZERS):
            cases = [Case(name, shape, dtype, t, setup.device) for shape in shapes for t in (True, False)]
            check(setup, report, tally, form, cases, list(LAYOUTS))
    tally.finish()


def test_special(setup: Setup, report: Report) -> None:
    """CUDA graphs, unaligned tensors, more than 2^31 elements, torch.compile."""
    tally = Tally(report, "special", [*DTYPES])
    names = [*NORMALIZERS][::-1][: 1 if setup.tiny else None]  # en first: torch.compile takes seconds for each case
    kinds = [("bfloat16", True), ("float32", True), ("bfloat16", False)][: 1 if setup.tiny else None]
    for name in names:
        check(setup, report, tally, "unaligned", [Case(name, SHAPES[1], "bfloat16", True, setup.device)], [*LAYOUTS])
    if setup.device == "cuda":
        for name in names:
            check(setup, report, tally, "CUDA graph", [Case(name, SHAPES[1], "bfloat16", True, "cuda")], [*LAYOUTS])
        for layout in LAYOUTS:
            for name in ("gn", "en"):
                tally.tried += 1
                with report.attempt(f"more than 2^31 elements, {name}, {layout}"):
                    beyond_int32(setup, report, tally, name, layout)
    else:
        report.note("CUDA graphs, tensors past 2^31 elements: skipped: expected a GPU")
    for name in names:
        for layout in LAYOUTS if name != "ssn" else ():  # whose ratios change with each batch
            tally.tried += 1
            with report.attempt(f"the same bits again, and on two streams at once, {name}, {layout}"):
                same_again(Case(name, SHAPES[-1], "bfloat16", True, setup.device), layout, 2 if setup.tiny else 20)
                tally.cases += 1
    for name in names:
        cases = [Case(name, SHAPES[1], dtype, training, setup.device) for dtype, training in kinds]
        check(setup, report, tally, "compiled", cases, ["channels_last"])
    tally.finish()


def check(setup: Setup, report: Report, tally: Tally, form: str, cases: list[Case], layouts: list[str]) -> None:
    """Counts the errors of cases of one normalizer."""
    if setup.left() < 0:
        report.note(f"{form}, {cases[0].name}: skipped: the time is over")
        tally.left_out = True
        return
    with in_form(form) if form in FORMS else nullcontext():
        for case in cases:
            for layout in layouts:
                tally.tried += 1
                with report.attempt(f"{case} {layout}, {form}"):
                    tally.count(case, form, layout, errors(case, result_of(setup, case, form, layout)))
    tally.close(cases[0].name, form)


def result_of(setup: Setup, case: Case, form: str, layout: str) -> Result:
    """What a form makes of a case."""
    layer, (x, dy) = case.layer(), tensors(case.shape, case.dtype, case.device)
    x, dy = (part.contiguous(memory_format=LAYOUTS[layout]) for part in (x, dy))
    if form == "CUDA graph":
        return replayed(layer, x, dy)
    if form == "unaligned":
        x, dy = unaligned(x), unaligned(dy)
    call: Callable[[Tensor], Tensor] = layer.plain if form == "plain" else layer
    if form == "compiled":
        torch.compiler.reset()
        call = torch.compile(layer, fullgraph=True, backend="eager" if setup.tiny else "inductor")
    if form in FORMS:  # twice: what is checked is what a second launch makes of what is remembered of the first
        first = case.layer()
        forward_backward(first, first, x, dy)
    return forward_backward(layer, call, x, dy)


def unaligned(x: Tensor) -> Tensor:
    """The same values, which begin one element after a multiple of 16 bytes."""
    return x.new_empty(x.numel() + 1).as_strided(x.shape, x.stride(), 1).copy_(x)


def replayed(layer: Normalizer, x: Tensor, dy: Tensor) -> Result:
    """What the replay of a graph leaves, without the averages, which the runs before it have moved."""
    kept: Result = {}

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        kept.update(forward_backward(layer, layer, x, dy))

    captured(step, torch.cuda.graph_pool_handle())()
    torch.cuda.synchronize()
    return {what: parts for what, parts in kept.items() if what != "averages"}


def same_again(case: Case, layout: str, times: int) -> None:
    """Raises AssertionError unless a layer whose cells are cut gives the same bits each time, on two streams as on one.

    Which of a cell's programs is the last is chance on a GPU, and on two streams even more.
    """
    x, dy = (part.contiguous(memory_format=LAYOUTS[layout]) for part in tensors(case.shape, case.dtype, case.device))
    layers = [case.layer(), case.layer()]
    first = forward_backward(layers[0], layers[0], x, dy)
    streams: list[AbstractContextManager[object]] = [nullcontext(), nullcontext()]
    if case.device == "cuda":
        torch.cuda.synchronize()
        streams = [torch.cuda.stream(torch.cuda.Stream()) for _ in layers]  # type: ignore[no-untyped-call]
    found = []
    for _ in range(times):
        for layer, stream in zip(layers, streams, strict=True):
            with stream:
                layer.zero_grad(set_to_none=True)
                found.append(forward_backward(layer, layer, x, dy))
    if case.device == "cuda":
        torch.cuda.synchronize()
    for result in found:
        for what in ("output", "input's gradient", "parameters' gradients"):
            assert all(map(torch.equal, first[what], result[what])), what


def beyond_int32(setup: Setup, report: Report, tally: Tally, name: str, layout: str) -> None:
    """The last samples of a huge tensor, in evaluation mode, where each is normalized by itself."""
    case = Case(name, (2, *BEYOND_INT32[1:]), "bfloat16", False, setup.device)
    free, needed = torch.cuda.mem_get_info()[0], 2 * 5 * torch.Size(BEYOND_INT32).numel()
    if free < needed:
        report.note(f"more than 2^31 elements: skipped: {needed / 2**30:.0f} GiB needed, {free / 2**30:.0f} free")
        tally.tried -= 1
        return
    x = torch.empty(BEYOND_INT32, device=setup.device, dtype=torch.bfloat16, memory_format=LAYOUTS[layout]).normal_()
    layer = case.layer()
    found = forward_backward(layer, layer, x, x)
    last, right = x[-2:].double(), case.layer().double()
    expected = forward_backward(right, right.plain, last, last)
    shares = {}
    for what in ("output", "input's gradient"):
        got, exact = found[what][0][-2:].double(), expected[what][0]
        allowed = ROUNDINGS[what] * torch.finfo(torch.bfloat16).eps * exact.abs().max()
        shares[what] = float((got - exact).abs().nan_to_num(nan=math.inf).max() / allowed)
    report.row(
        f"the same for the last samples of {' x '.join(map(str, BEYOND_INT32))}",
        normalizer=name,
        layout=layout,
        **shares,
    )
    tally.count(case, "more than 2^31 elements", layout, shares)
