"""Checks that a network takes images of some sizes and answers as it is expected to."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from en.norm import Normalizer
from en.size import Size, in_words


def skeleton(model: nn.Module) -> nn.Module:
    """Copies a network to the meta device, where nothing is computed, and has its normalizers return their input.

    They keep every shape, and are most of what a pass takes there.
    """
    twin = copy.deepcopy(model).to("meta")
    for layer in twin.modules():
        if isinstance(layer, Normalizer):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    return twin


def check_output(
    model: nn.Module, check: Callable[[object], None], training: Iterable[Size], evaluation: Iterable[Size]
) -> None:
    """Raises ValueError unless the network takes two images of some sizes and `check` what it makes of them.

    Nothing is computed: its skeleton is called.

    Args:
        check: of an output; raises ValueError.
        training, evaluation: sizes of the images in either mode.
    """
    twin = skeleton(model)
    for mode, sizes in ((True, training), (False, evaluation)):
        for size in sizes:
            check_size(twin.train(mode), check, size)


@torch.no_grad()
def check_size(twin: nn.Module, check: Callable[[object], None], size: Size) -> None:
    mode = "training" if twin.training else "evaluation"
    try:
        output = twin(torch.empty(2, 3, *size, device="meta"))
    except Exception as error:  # networks refuse a size in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{in_words(size)} pixels in {mode}: expected a size that the network takes: {reason}"
        ) from error
    try:
        check(output)
    except ValueError as error:
        raise ValueError(f"{error} in {mode}") from error
