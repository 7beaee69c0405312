"""The maps that a network's mixtures of normalizers are trained on, by which each of them decides what it mixes."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from en.norm.base import Normalizer
from en.norm.combined import CombinedNormalizer


def mixtures(model: nn.Module) -> dict[str, CombinedNormalizer]:
    """The layers of en, sn and ssn, by their names as in model.named_modules()."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, CombinedNormalizer)}


def mixed_layers(model: nn.Module) -> dict[str, int]:
    """Counts the layers of a trained network by the normalizers that they mix: {"bn, in, ln": 10, "bn, ln": 5}."""
    return dict(Counter(", ".join(layer.mixed or layer.normalizers) for layer in mixtures(model).values()))


def fix_maps(model: nn.Module, images: Tensor) -> nn.Module:
    """Has every layer of en, sn and ssn mix what it would if it were trained on `images`, and returns the model.

    In training the first batch does so by itself: this is for scripts whose first batch has another size than those to
    come, and for weights that were saved without the size of their maps. A model without such layers stays as it is.

    Args:
        images: an input of the model, on its device; one image is enough.
    """
    set_maps(model, maps_of(model, images))
    return model


def set_maps(model: nn.Module, pixels: Mapping[str, int]) -> None:
    """Gives layers the size of the maps that they are trained on, H * W by the layer's name."""
    layers = mixtures(model)
    for name, size in pixels.items():
        layers[name].fix_pixels(size)


@torch.no_grad()
def maps_of(
    model: nn.Module, images: Tensor, kind: type[Normalizer] | tuple[type[Normalizer], ...] = CombinedNormalizer
) -> dict[str, int]:
    """H * W of the map that each layer of en, sn and ssn, or of a kind, sees first over `images`, by the layer's name.

    The pass is in evaluation mode, modes are as before; layers that it does not reach are left out.
    """
    seen: dict[str, int] = {}
    names: dict[nn.Module, str] = {part: name for name, part in model.named_modules() if isinstance(part, kind)}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(names[layer], inputs[0].shape[2] * inputs[0].shape[3])

    modes = {module: module.training for module in model.modules()}
    warned = {layer: layer._warned for layer in mixtures(model).values()}
    hooks = [layer.register_forward_pre_hook(look) for layer in names]
    try:
        for layer in warned:
            layer._warned = True
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, before in warned.items():
            layer._warned = before
        for module, training in modes.items():
            module.training = training
    return seen
