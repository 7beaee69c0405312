"""A normalizer put into a network that was built with batch normalization."""

import torch
from torch import Tensor, nn

from en.norm.registry import build_norm, norm_options


class NormAct(nn.Module):
    """A normalizer followed by drop and activation modules: in place of a fused layer (timm's BatchNormAct2d)."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y: Tensor = self.act(self.drop(self.norm(x)))
        return y


def replace_norm(model: nn.Module, name: str, **options: object) -> nn.Module:
    """Replaces every batch normalization of `model` in place and returns the model (a new layer if it is itself one).

    The new layers keep the old ones' affine values (so a zero-initialized last gamma stays zero), device, dtype and
    mode, and their eps and momentum unless given in `options`. nn.BatchNorm2d is replaced, and timm's BatchNormAct2d
    with its activation kept. A layer used in several places stays shared.

    Raises: ValueError, with the model untouched, for a bad name or option, a network without batch normalization, or
    one with a batch normalization that cannot be replaced, named by its place in the network.
    """
    layers = {place: layer for place, layer in model.named_modules() if is_batch_norm(layer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no batch normalization to replace")
    for place, layer in layers.items():
        refuse_irreplaceable(place or type(model).__name__, layer)
    new = {id(layer): successor(place, layer, name, options) for place, layer in layers.items()}
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is not None and id(child) in new:
                setattr(parent, child_name, new[id(child)])
    return model


def is_batch_norm(layer: nn.Module) -> bool:
    """Whether `layer` is batch normalization of any library, fused, frozen or synchronized ones included."""
    return any("BatchNorm" in cls.__name__ and cls.__module__.split(".")[0] != "en" for cls in type(layer).__mro__[:-1])


def is_fused(layer: nn.Module) -> bool:
    return type(layer).__name__ == "BatchNormAct2d"


def refuse_irreplaceable(place: str, layer: nn.Module) -> None:
    """Raises ValueError that names the layer unless it is a BatchNorm2d, fused or not, affine and with averages."""
    kind = type(layer).__name__
    if type(layer) is not nn.BatchNorm2d and not is_fused(layer):
        raise ValueError(
            f"{place} is a {kind}, which cannot be replaced: expected nn.BatchNorm2d or timm's BatchNormAct2d"
        )
    assert isinstance(layer, nn.BatchNorm2d)
    if not layer.affine or not layer.track_running_stats:
        missing = "affine parameters" if not layer.affine else "running statistics"
        raise ValueError(f"{place} is a {kind} without {missing}, which no normalizer here stands for")


def successor(place: str, layer: nn.Module, name: str, options: dict[str, object]) -> nn.Module:
    """The layer that takes the place of a BatchNorm2d. Raises ValueError that names the place."""
    assert isinstance(layer, nn.BatchNorm2d)
    inherited = {"eps": layer.eps, "momentum": layer.momentum}
    known = norm_options(name)
    try:
        norm = build_norm(name, layer.num_features, **{k: v for k, v in inherited.items() if k in known} | options)
    except ValueError as error:
        raise ValueError(f"{place or type(layer).__name__}: {error}") from error
    norm.to(device=layer.weight.device, dtype=layer.weight.dtype)
    with torch.no_grad():
        try:
            weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
        except AttributeError as error:
            raise ValueError(f"{name}: expected parameters weight and bias, (C,) or (K * C,): {error}") from error
        rows = weight.numel() // layer.num_features
        weight.copy_(layer.weight.repeat(rows))
        bias.copy_((layer.bias / rows).repeat(rows))
    norm.train(layer.training)
    return NormAct(norm, layer.drop, layer.act) if is_fused(layer) else norm  # type: ignore[arg-type]
