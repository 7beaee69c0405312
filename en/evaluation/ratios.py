"""How much of each normalizer EN uses, over a whole set."""

import torch
from torch import Tensor, nn

from en.distributed.ranks import sum_over_ranks
from en.norm import ExemplarNorm2d


def mean_ratios(model: nn.Module, record: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """The mean ratio of each normalizer in each EN layer of a record, over the samples of all ranks."""
    layers = {name: layer.normalizers for name, layer in model.named_modules() if isinstance(layer, ExemplarNorm2d)}
    if not layers:
        return {}
    device = next(model.parameters()).device
    sums = [record[name].double().sum(0) if name in record else torch.zeros(len(k)) for name, k in layers.items()]
    flat = sum_over_ranks(torch.cat([part.to(device, torch.float64) for part in sums]))
    shares = iter((flat / flat[: len(next(iter(layers.values())))].sum()).tolist())
    return {name: {kind: next(shares) for kind in kinds} for name, kinds in layers.items()}
