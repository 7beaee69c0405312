"""Parameters and multiply-accumulates of a network, counted by torch's own counter."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from en.norm import Normalizer
from en.size import Size


@dataclass(frozen=True)
class Complexity:
    """What a network costs for one image; 1 MAC = 2 FLOPs.

    Attributes:
        params: trainable values.
        gmacs: 1e9 MACs of convolutions and linear layers outside the normalizers.
        norm_gmacs: 1e9 MACs that the normalizers add in evaluation.
    """

    params: int
    gmacs: float
    norm_gmacs: float


def complexity(model: nn.Module, size: Size) -> Complexity:
    """Counts the network's parameters and, for one image of a size in evaluation, its MACs.

    The normalizers' share is 1 MAC an element for the affine map, 2 more where moments are taken from the sample, and
    the matrix products of EN's gate (our choice; published counts differ in what they include). The model is left as
    it is.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    layers = {name: layer for name, layer in twin.named_modules() if isinstance(layer, Normalizer)}
    elements: list[int] = []
    for layer in layers.values():
        layer.register_forward_hook(lambda layer, _, out: elements.append(out.numel() * layer.macs_per_element))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.empty(1, 3, *size, device="meta"))
    counts = counter.get_flop_counts()
    root = type(twin).__name__
    in_norms = sum(sum(counts.get(f"{root}.{name}", {}).values()) for name in layers)
    return Complexity(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        gmacs=(counter.get_total_flops() - in_norms) / 2e9,
        norm_gmacs=(in_norms / 2 + sum(elements)) / 1e9,
    )
