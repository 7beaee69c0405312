"""Launches of Triton's kernels, with as little of Python as goes before them.

At each launch Triton asks of each argument what a kernel is compiled for, and of each global whether it has changed:
for the ten launches of a layer that is longer than most layers take on a GPU. Here a kernel that has been compiled is
found by all that its code depends on: type and alignment of tensors, integers by their values, and the constants.
Whatever has not been launched so before goes through Triton.
"""

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

MOST = 100_000
"""Launches that are remembered: some 500 for each shape of a network's input."""

ALIGNED = 16
"""Bytes; a pointer to a multiple of it is loaded from in larger pieces. Triton's own number."""

SLOW_S, TOLD_AT = 0.1, 2
"""Seconds of a launch that has compiled its kernel, 0.3 as measured; the first one may have found the GPU instead."""

NOTICE = "en.norm compiles Triton's kernels, once for each shape of a layer and GPU: about 20 s for a ResNet50"
slow: list[Any] = []
"""Kernels whose launch took so long."""

ONES = (1, 1, 1)

compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
"""Kernels, and their constants in the order of their arguments, by what their code depends on."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Runs a kernel on the grid, whose first argument is a tensor, on the current device.

    Contraction to fused multiply-adds is what Triton does by default, said aloud.
    """
    place = arguments[0].device.index
    key = (id(kernel), place, warps, *constants.values(), *map(trait, arguments))
    found = compiled.get(key)
    if found is not None:
        ready, rest = found
        ready[grid + ONES[len(grid) :]](*arguments, *rest)
        return
    begun = time.perf_counter()
    ready = kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
    if time.perf_counter() - begun > SLOW_S:
        slow.append(kernel)
        if len(slow) == TOLD_AT and os.environ.get("RANK", "0") == "0":
            print(f"{NOTICE}\n", end="", file=sys.stderr, flush=True)
    if ready is not None and torch.version.hip is None:  # not interpreted; and AMD's kernels depend on sizes too
        if len(compiled) >= MOST:
            compiled.clear()
        compiled[key] = ready, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])


def trait(argument: Tensor | int | None) -> object:
    """Returns what a kernel's code may depend on in an argument."""
    if argument is None or isinstance(argument, int):
        return argument
    return argument.dtype if argument.data_ptr() % ALIGNED == 0 else (argument.dtype,)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever its arguments lie on."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
