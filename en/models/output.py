"""Whether a network is a classifier of images of some sizes."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from en.norm import Normalizer


def check_output(model: nn.Module, num_classes: int, training_sides: Iterable[int], evaluation_sides: Iterable[int]) -> None:
    """Raises ValueError unless two images, 3 x side x side pixels, become one tensor (2, num_classes).

    Nothing is computed: a copy without its normalizers, which keep every shape, is called on the meta device.

    Args:
        training_sides, evaluation_sides: pixels, of the images in either mode.
    """
    twin = copy.deepcopy(model).to("meta")
    for layer in twin.modules():
        if isinstance(layer, Normalizer):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    for training, sides in ((True, training_sides), (False, evaluation_sides)):
        for side in sides:
            check_side(twin.train(training), num_classes, side)


@torch.no_grad()
def check_side(twin: nn.Module, num_classes: int, side: int) -> None:
    mode = "training" if twin.training else "evaluation"
    try:
        output = twin(torch.empty(2, 3, side, side, device="meta"))
    except Exception as error:  # networks refuse a size in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{side} pixels in {mode}: expected a size that the network takes: {reason}") from error
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        found = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"expected a classifier, one tensor (2, {num_classes}) for 2 images; in {mode} found {found}")
