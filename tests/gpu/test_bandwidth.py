"""Each of the four passes against a copy, from device to device, that moves as many bytes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from en.benchmarks.steps import DTYPES, LAYOUTS
from en.benchmarks.timing import interleaved, median
from en.norm.kernels import autograd
from gpu.results import Report, Setup

SHAPES = ((256, 256, 56, 56), (256, 512, 28, 28), (256, 2048, 7, 7))
SMALL_SHAPES = ((2, 32, 4, 4),)
TENSORS = {"moments": 1, "affine": 2, "gradient_sums": 2, "input_gradient": 3}
"""How many tensors of the input's size a pass reads and writes."""


def test_bandwidth(setup: Setup, report: Report) -> None:
    """The least share at the first shape, over layouts and types, is the figure with a target."""
    least: dict[str, float] = {}
    shapes = SMALL_SHAPES if setup.tiny else SHAPES
    for shape in shapes:
        for dtype in ("bfloat16", "float32"):
            for layout in LAYOUTS:
                with report.attempt(f"{shape} {dtype} {layout}"):
                    shares = measure(setup, report, shape, dtype, layout)
                    if shape == shapes[0]:
                        least = {name: min(share, least.get(name, share)) for name, share in shares.items()}
    for name, share in least.items():
        report.figure(f"share {name}", share)


def measure(
    setup: Setup, report: Report, shape: tuple[int, int, int, int], dtype: str, layout: str
) -> Mapping[str, float]:
    """The share of a copy's speed that each pass reaches, and a row of the table."""
    x, dy = (torch.randn(shape, device=setup.device, dtype=DTYPES[dtype]) for _ in range(2))
    x, dy = (part.contiguous(memory_format=LAYOUTS[layout]) for part in (x, dy))
    cases = passes(x, dy) | {f"copy {tensors}": copy(x, tensors) for tensors in (1, 2, 3)}
    repeat = 1 if setup.tiny else 10
    seconds = interleaved(cases, 2 if setup.tiny else 7, f"passes {shape}", repeat=repeat, device=setup.device)
    times = {name: median(values) for name, values in seconds.items()}
    shares = {name: times[f"copy {tensors}"] / times[name] for name, tensors in TENSORS.items()}
    speed = 3 * x.numel() * x.element_size() / times["copy 3"] / 1e9
    by = getattr(autograd.passes_for(x), "__name__", "?").removeprefix("en.norm.kernels.")
    title = "share of the speed of a copy of the same bytes"
    sizes = " x ".join(map(str, shape))
    report.row(title, input=sizes, type=dtype, layout=layout, by=by, **{"copy GB/s": speed}, **shares)
    return shares


def passes(x: Tensor, dy: Tensor) -> dict[str, Callable[[], object]]:
    """The four passes as the normalizers call them."""
    run = autograd.passes_for(x)
    stats = run.moments(x)
    scale, shift, d_mean, d_var = (torch.randn_like(stats[0]) for _ in range(4))
    sum_dy, _ = run.gradient_sums(dy, x, stats)
    return {
        "moments": lambda: run.moments(x),
        "affine": lambda: run.affine(x, stats, scale, shift),
        "gradient_sums": lambda: run.gradient_sums(dy, x, stats),
        "input_gradient": lambda: run.input_gradient(dy, x, stats, sum_dy.contiguous(), scale, d_mean, d_var),
    }


def copy(x: Tensor, tensors: int) -> Callable[[], object]:
    """A copy that reads and writes together as many bytes as `tensors` tensors of x's size hold."""
    source = torch.randn(x.numel() * tensors // 2, device=x.device).to(x.dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
