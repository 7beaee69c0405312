"""The ratios of EN layers, collected while a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from en.norm.exemplar import ExemplarNorm2d


@contextmanager
def record_ratios(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the ratios of every EN layer in `model` over all forward passes inside the `with` block.

    Yields: {layer name as in model.named_modules(): ratios (N, K)}, detached, on the layer's device, N counting the
    samples of all passes in the order they ran, K in the order of the layer's `normalizers`. Empty without EN layers.
    """
    record: dict[str, Tensor] = {}

    def append(name: str, ratios: Tensor) -> None:
        record[name] = torch.cat([record[name], ratios]) if name in record else ratios

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ExemplarNorm2d)}
    before = {name: layer._observer for name, layer in layers.items()}
    for name, layer in layers.items():
        layer._observer = partial(append, name)
    try:
        yield record
    finally:
        for name, layer in layers.items():
            layer._observer = before[name]
