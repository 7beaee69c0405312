"""Whether a network takes images of some sizes and answers as it is expected to."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from en.norm import Normalizer


def check_output(
    model: nn.Module, check: Callable[[object], None], training_sides: Iterable[int], evaluation_sides: Iterable[int]
) -> None:
    """Raises ValueError unless the network takes two images, 3 x side x side pixels, and `check` what it makes of them.

    Nothing is computed: a copy without its normalizers, which keep every shape, is called on the meta device.

    Args:
        check: of an output; raises ValueError.
        training_sides, evaluation_sides: pixels, of the images in either mode.
    """
    twin = copy.deepcopy(model).to("meta")
    for layer in twin.modules():
        if isinstance(layer, Normalizer):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    for training, sides in ((True, training_sides), (False, evaluation_sides)):
        for side in sides:
            check_side(twin.train(training), check, side)


@torch.no_grad()
def check_side(twin: nn.Module, check: Callable[[object], None], side: int) -> None:
    mode = "training" if twin.training else "evaluation"
    try:
        output = twin(torch.empty(2, 3, side, side, device="meta"))
    except Exception as error:  # networks refuse a size in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{side} pixels in {mode}: expected a size that the network takes: {reason}") from error
    try:
        check(output)
    except ValueError as error:
        raise ValueError(f"{error} in {mode}") from error
