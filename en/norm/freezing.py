"""Normalizers that neither learn nor follow the batches."""

from torch import nn

from en.norm.base import Normalizer


def freeze(model: nn.Module) -> None:
    """Keeps every normalizer of `model` in evaluation mode, whatever model.train() says, and its parameters fixed.

    Batch statistics are then the running averages; en's ratios still come from the sample. Raises: ValueError for a
    model without normalizers.
    """
    for layer in normalizers(model):
        if not layer.frozen:
            layer.frozen, layer.learned = True, [name for name, part in layer.named_parameters() if part.requires_grad]
        layer.eval().requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Undoes freeze(): every normalizer takes the model's mode, and of its parameters those learn that did before."""
    for layer in normalizers(model):
        if layer.frozen:
            layer.frozen = False
            layer.train(model.training)
            for name in layer.learned:
                layer.get_parameter(name).requires_grad_(True)


def normalizers(model: nn.Module) -> list[Normalizer]:
    layers = [layer for layer in model.modules() if isinstance(layer, Normalizer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no normalizer of en.norm")
    return layers
