"""Parameters and multiply-accumulates of a network, counted by torch's own counter."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from en.models.output import skeleton
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
    twin = skeleton(model).eval()
    seen: list[tuple[Normalizer, Tensor]] = []
    for layer in twin.modules():
        if isinstance(layer, Normalizer):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs[0])))
    flops = flops_of(twin, torch.empty(1, 3, *size, device="meta"))
    norm_macs = float(sum(x.numel() * layer.macs_per_element for layer, x in seen))
    known: dict[tuple[str, tuple[int, ...]], int] = {}  # of layers that are alike
    for layer, x in list(seen):
        key = repr(layer), tuple(x.shape)
        if key not in known:
            del layer.forward
            known[key] = flops_of(layer, x)
        norm_macs += known[key] / 2
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Complexity(params, gmacs=flops / 2e9, norm_gmacs=norm_macs / 1e9)


def flops_of(module: nn.Module, x: Tensor) -> int:
    """Counts the FLOPs of a module's convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return int(counter.get_total_flops())
