"""Convolutions of other libraries that take in the batch normalization after them, and cannot take in a normalizer."""

import inspect
from functools import partial
from typing import NoReturn

from torch import nn

from en.norm.base import Normalizer
from en.norm.single import BatchNorm2d

METHODS = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm and others call the methods that make one convolution of several and their batch normalization."""


def refuse_fusions(model: nn.Module) -> None:
    """Has the methods that would take a normalizer for batch normalization, and compute something else, refuse.

    They take no argument; a method of the same name that does is another thing. bn is batch normalization.
    """
    for place, module in model.named_modules():
        inside = [layer for layer in module.modules() if isinstance(layer, Normalizer)]
        others = [type(layer).__name__ for layer in inside if type(layer) is not BatchNorm2d]
        for method in METHODS if others else ():
            found = getattr(type(module), method, None)
            if callable(found) and len(inspect.signature(found).parameters) == 1:
                setattr(module, method, partial(refuse_fusion, f"{place}.{method}()".lstrip("."), others[0]))


def refuse_fusion(call: str, kind: str) -> NoReturn:
    """Raises ValueError: such a method was called."""
    raise ValueError(f"{call}: expected batch normalization in it, not {kind}, which no convolution can take in")
