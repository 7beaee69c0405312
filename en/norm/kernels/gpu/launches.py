"""Launches of Triton's kernels, with as little of Python as goes before them.

At each launch Triton asks of each argument what a kernel is compiled for, and of each global whether it has changed:
for the seven launches of a layer that is longer than most layers take on a GPU. Here a kernel that has been compiled is
found by all that its code depends on: type and alignment of tensors, integers by their values, and the constants.
Whatever has not been launched so before goes through Triton. What a layer launches each way is kept as well, as a
Program, which C++ launches: of a call like one before, only the addresses of the tensors are new.
"""

import operator
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from triton import knobs

from en.norm.kernels.gpu import host

MOST = 100_000
"""Launches that are remembered: some 500 for each shape of a network's input."""

ALIGNED = 16
"""Bytes; a pointer to a multiple of it is loaded from in larger pieces. Triton's own number."""

SLOW_S, TOLD_AT = 0.1, 2
"""Seconds of a launch that has compiled its kernel, 0.3 as measured; the first one may have found the GPU instead."""

NOTICE = "en.norm compiles Triton's kernels, once for each shape of a layer and GPU: about 20 s for a ResNet50"
slow: list[Any] = []
"""Kernels whose launch took so long."""

MOST_SHARED = 228 * 1024
"""Bytes of shared memory that a kernel has without options; Triton's own number."""

ONES = (1, 1, 1)

compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
"""Kernels, and their constants in the order of their arguments, by what their code depends on."""


class Launch(Protocol):
    """Runs a kernel: launch(), a Recorder or, in tests, something that compiles it alone."""

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> object:
        """As launch()."""


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any
) -> tuple[Any, tuple[Any, ...]] | None:
    """Runs a kernel on the grid, whose first argument is a tensor, on the current device.

    Contraction to fused multiply-adds is what Triton does by default, said aloud.

    Returns: the compiled kernel and its constants in the order of its arguments; None where it is not to be remembered.
    """
    place = arguments[0].device.index
    key = (id(kernel), place, warps, *constants.values(), *map(trait, arguments))
    found = compiled.get(key)
    if found is not None:
        ready, rest = found
        ready[grid + ONES[len(grid) :]](*arguments, *rest)
        return found
    begun = time.perf_counter()
    ready = kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
    if time.perf_counter() - begun > SLOW_S:
        slow.append(kernel)
        if len(slow) == TOLD_AT and os.environ.get("RANK", "0") == "0":
            print(f"{NOTICE}\n", end="", file=sys.stderr, flush=True)
    if ready is None or torch.version.hip is not None:  # interpreted; and AMD's kernels depend on sizes too
        return None
    if len(compiled) >= MOST:
        compiled.clear()
    compiled[key] = ready, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
    return compiled[key]


Place = tuple[int, int]
"""The number of the tensor in whose memory another lies, and how many bytes behind its beginning."""


class Recorder:
    """Launches kernels, and notes what it launched.

    Args:
        places: of each tensor among the arguments, by id().
    """

    def __init__(self, places: Mapping[int, Place]) -> None:
        self._places = places
        self._kernels: list[tuple[Any, tuple[int, ...], list[Any]]] = []
        self._complete = True

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **constants: Any) -> None:
        found = launch(kernel, grid, *arguments, warps=warps, **constants)
        if found is None:
            self._complete = False
            return
        ready, rest = found
        self._kernels.append((ready, grid + ONES[len(grid) :], [*arguments, *rest]))

    def program(self, tensors: int) -> "Program | None":
        """Makes the launches that were noted, of so many tensors, one call of C++; None where that cannot be done."""
        plain = all(is_plain(ready) and len(ready.src.signature) == len(values) for ready, _, values in self._kernels)
        if not self._complete or not plain or not host.is_there():
            return None
        # Triton's hidden parameters, of which there have been up to two, are null for kernels that need no memory.
        for hidden in (2, 1, 0):
            numbers = [tensors]
            for ready, grid, values in self._kernels:
                parts = [*self._parts(ready, values), *[(8, -1, 0)] * hidden]
                threads = ready.metadata.num_warps * ready.metadata.target.warp_size
                numbers += [ready.function, *grid, threads, ready.metadata.shared, len(parts), *chain(*parts)]
            program = torch.tensor(numbers, dtype=torch.int64, device="cpu")  # whatever the default device
            if host.agrees(program):
                return Program(program, [ready for ready, _, _ in self._kernels])
        return None

    def _parts(self, ready: Any, values: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
        """Lists a kernel's parameters as host/launches.cpp has them: bytes, number of the tensor or -1, and value."""
        for kind, value in zip(ready.src.signature.values(), values, strict=True):
            if isinstance(value, Tensor):
                yield 8, *self._places[id(value)]
            elif kind != "constexpr":
                yield 8 if kind == "i64" else 4, -1, value


class Program(NamedTuple):
    """Launches, one after another.

    Attributes:
        numbers: what host/launches.cpp reads.
        kernels: which Triton unloads when nobody has them any more.
    """

    numbers: Tensor
    kernels: list[Any]


def is_plain(ready: Any) -> bool:
    """Tells whether a compiled kernel takes nothing but integers and tensors, and a launch without options."""
    metadata, kinds = ready.metadata, ready.src.signature.values()
    unusual = ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl")
    return (
        all(kind in ("constexpr", "i32", "i64") or kind.startswith("*") for kind in kinds)
        and not any(getattr(metadata, name, 0) for name in unusual)
        and metadata.num_ctas == 1
        and metadata.shared <= MOST_SHARED
    )


def aligned(pointers: list[int]) -> bool:
    """Tells whether all tensors at these addresses are ALIGNED: for others, kernels are compiled apart."""
    return reduce(operator.or_, pointers) % ALIGNED == 0


def watched() -> bool:
    """Tells whether somebody, such as a profiler, has Triton call him at each launch."""
    known = knobs.runtime
    return bool(known.launch_enter_hook.calls or known.launch_exit_hook.calls)


def stream_of(x: Tensor) -> int:
    """The current stream of x's device, on which Triton launches."""
    return torch._C._cuda_getCurrentRawStream(x.device.index) if x.is_cuda else 0


def trait(argument: Tensor | int | None) -> object:
    """Returns what a kernel's code may depend on in an argument."""
    if argument is None or isinstance(argument, int):
        return argument
    return argument.dtype if argument.data_ptr() % ALIGNED == 0 else (argument.dtype,)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever its arguments lie on."""
    return torch.cuda.device(x.device) if is_elsewhere(x) else nullcontext()


def is_elsewhere(x: Tensor) -> bool:
    """Tells whether x lies on another GPU than the current one."""
    return x.is_cuda and x.get_device() != torch.cuda.current_device()
