"""Second derivatives: a backward pass that is itself recorded differentiates the layer's plain form instead."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Layer(Protocol):
    """What Again asks of a layer: see en.norm.base.Normalizer."""

    training: bool

    @property
    def observed(self) -> bool: ...
    def plain(self, x: Tensor) -> Tensor: ...
    def observe(self, ratios: Tensor) -> None: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def remembered(self) -> Mapping[str, Tensor]: ...


class Again(NamedTuple):
    """A layer as it is in a forward pass, whose backward pass may need to compute it again.

    Attributes:
        layer: whose plain form is differentiated.
        training: its mode then.
        buffers: what it computed with then and has changed since.
    """

    layer: Layer
    training: bool
    buffers: Mapping[str, Tensor]

    def gradients(self, x: Tensor, dy: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Computes differentiable gradients of the inputs; None where one is not required, or zero."""
        wanted = [part for part in inputs if part.requires_grad]
        with self.as_it_was():
            y = self.layer.plain(x)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
        return [next(found) if part.requires_grad else None for part in inputs]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Inside, the layer has its mode of then, changes copies of its buffers, and tells nobody of its ratios."""
        modules = list(self.layer.modules())
        mode, kept = self.layer.training, [module._buffers for module in modules]
        for module in modules:
            module._buffers = {name: None if part is None else part.clone() for name, part in module._buffers.items()}
        modules[0]._buffers |= self.buffers
        self.layer.training = self.training
        vars(self.layer)["observe"] = lambda ratios: None
        try:
            yield
        finally:
            del vars(self.layer)["observe"]
            self.layer.training = mode
            for module, buffers in zip(modules, kept, strict=True):
                module._buffers = buffers
