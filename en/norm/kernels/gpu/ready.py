"""Sizes, memory and launches that follow from a layer's shape, kept from its first call on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from en.norm.kernels.gpu import host
from en.norm.kernels.gpu.blocks import blocks_for
from en.norm.kernels.gpu.launches import (
    Launch,
    Place,
    Program,
    Recorder,
    aligned,
    is_elsewhere,
    launch,
    on_device_of,
    stream_of,
    watched,
)
from en.norm.kernels.gpu.small import Memory, Small, small_of
from en.norm.kernels.plan import NativePlan
from en.norm.statistics import moments_dtype

MOST = 4096
"""Shapes that are remembered."""

known: dict[tuple[object, ...], "Ready"] = {}
"""By all that a layer's launches depend on, besides the addresses of tensors."""


class Ready:
    """A plan on inputs of one size, type, layout and device.

    Attributes:
        small: sizes of the part on (N, K, C) and less.
        blocks: programs of the passes.
        momentum: of the running averages.
        dtype: of the moments.
        kept: memory from the forward pass to the backward one.
        forward_work, backward_work: memory that is needed within a pass.
    """

    def __init__(self, plan: NativePlan, x: Tensor) -> None:
        self.small: Small = small_of(plan, x)
        self.blocks = blocks_for(x)
        self.momentum = plan.momentum
        self.dtype = moments_dtype(x.dtype)
        self.kept = self.small.kept
        self.forward_work = self.small.forward_work(self.blocks)
        self.backward_work = self.small.backward_work(self.blocks)
        self._programs: dict[object, Program | None] = {}
        self._counters: dict[int, tuple[Tensor, ...]] = {}

    def counters(self, x: Tensor) -> tuple[Tensor, ...]:
        """Zeros by which the programs of a block of cut cells know which of them is the last; none for whole cells.

        Kernels leave them as they were. So one tensor serves all launches of a stream, which run one after another.
        Those in a CUDA graph have a tensor of their own, zeroed in the graph, because graphs may run side by side.
        """
        blocks = self.blocks
        if blocks.splits == 1:
            return ()
        count = blocks.outer * blocks.cell_blocks
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return (x.new_zeros(count, dtype=torch.int32),)
        stream = stream_of(x)
        if stream not in self._counters:
            self._counters[stream] = (x.new_zeros(count, dtype=torch.int32),)
        return self._counters[stream]

    def launch_again(self, key: object, tensors: Sequence[Tensor]) -> bool:
        """Launches what was launched with this key before, on other tensors, and tells whether it could.

        It cannot on another device than the current one, nor where C++ cannot: see host/launches.cpp.

        Args:
            key: what the launches depend on, besides the addresses of tensors.
            tensors: all that the launches take, the first of them on their device.
        """
        program = self._programs.get(key)
        if program is None or watched() or is_elsewhere(tensors[0]):
            return False
        return host.launch(tensors, program.numbers, stream_of(tensors[0]))

    def launch(
        self,
        key: object,
        tensors: Sequence[Tensor],
        blocks: Sequence[tuple[Tensor, Memory]],
        body: Callable[[Launch, list[list[Tensor]]], None],
    ) -> None:
        """Launches what `body` does, and remembers it for `launch_again`.

        Args:
            key, tensors: as there.
            blocks: memory among the tensors that holds several.
            body: is given what runs kernels, and the tensors in each of the blocks.
        """
        views = [memory.views(block) for block, memory in blocks]
        unusual = watched() or not aligned([tensor.data_ptr() for tensor in tensors])
        with on_device_of(tensors[0]):
            if unusual or key in self._programs or len(set(map(id, tensors))) < len(tensors):
                body(launch, views)
                return
            recorder = Recorder(places(tensors, blocks, views))
            body(recorder, views)
            self._programs[key] = recorder.program(len(tensors))


def places(
    tensors: Sequence[Tensor], blocks: Sequence[tuple[Tensor, Memory]], views: Sequence[Sequence[Tensor]]
) -> dict[int, Place]:
    """Where each tensor lies, by id()."""
    numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
    found = {tensor: (number, 0) for tensor, number in numbers.items()}
    for (block, memory), inside in zip(blocks, views, strict=True):
        size = block.element_size()
        starts = zip(inside, memory.starts, strict=True)
        found |= {id(view): (numbers[id(block)], start * size) for view, start in starts}
    return found


def ready_for(plan: NativePlan, x: Tensor) -> Ready:
    """Finds what is known of the plan on such inputs, or begins to know it."""
    names, groups, eps, parameters, ratios, mix, training, running, *others, _ = plan
    sizes = len(parameters), parameters[0].numel(), parameters[-1 if len(parameters) < 5 else -4].shape[0]
    of_plan = names, groups, eps, ratios, mix, training, running is None, *others
    key = (x.shape, x.dtype, x.is_contiguous(), x.device, *sizes, *of_plan)
    found = known.get(key)
    if found is None:
        if len(known) >= MOST:
            known.clear()
        found = known[key] = Ready(plan, x)
    return found
