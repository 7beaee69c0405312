"""Normalizers that neither learn nor follow the batches."""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from en.norm.base import Normalizer


def freeze(model: nn.Module, parameters: bool = True) -> None:
    """Keeps every normalizer of `model` in evaluation mode, whatever model.train() says, and its parameters fixed.

    Batch normalization that replace_norm left in its place is one of them. Batch statistics are then the running
    averages; en's ratios still come from the sample.

    Args:
        parameters: whether they are fixed; False: the statistics alone.
    Raises: ValueError for a model without normalizers.
    """
    for layer in normalizers(model):
        if not getattr(layer, "frozen", False):
            names = [name for name, part in layer.named_parameters() if part.requires_grad]
            vars(layer).update(frozen=True, learned=names)
        if not isinstance(layer, Normalizer):
            vars(layer)["train"] = partial(remain, layer)
        layer.eval()
        if parameters:
            layer.requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Undoes freeze(): every normalizer takes the model's mode, and of its parameters those learn that did before."""
    for layer in normalizers(model):
        if getattr(layer, "frozen", False):
            names = vars(layer).pop("learned")
            for name in ("frozen", "train"):
                vars(layer).pop(name, None)
            layer.train(model.training)
            for name in names:
                layer.get_parameter(name).requires_grad_(True)


def remain(layer: nn.Module, mode: bool = True) -> nn.Module:
    """Stands for train() of a frozen layer of torch's own: it is in evaluation mode, whatever is asked for."""
    layer.training = False
    for child in layer.children():  # of a fused layer: its activation and dropout
        child.train(mode)
    return layer


def freeze_alike(new: nn.Module, old: nn.Module) -> None:
    """Freezes a layer of torch's own that takes the place of a frozen one."""
    if getattr(old, "frozen", False):
        vars(new).update(frozen=True, learned=vars(old)["learned"], train=partial(remain, new))
        new.eval()


def normalizers(model: nn.Module) -> list[nn.Module]:
    if not has_normalizers(model):
        raise ValueError(f"{type(model).__name__} has no normalizer")
    return [layer for layer in model.modules() if isinstance(layer, (Normalizer, _BatchNorm))]


def has_normalizers(model: nn.Module) -> bool:
    return any(isinstance(layer, (Normalizer, _BatchNorm)) for layer in model.modules())
