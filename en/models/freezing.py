"""Parts of a network that stay as they are while the rest learns."""

import difflib
from collections.abc import Sequence
from fnmatch import filter as matching
from typing import NamedTuple

from torch import nn

from en.errors import shown
from en.norm import freeze
from en.norm.freezing import has_normalizers, normalizers


class Frozen(NamedTuple):
    """Lists what stays as it is: tensors that do not learn, and normalizers that keep their statistics."""

    parameters: list[str]
    normalizers: list[str]

    def lines(self) -> list[str]:
        """Says it in a line; in none where nothing is frozen."""
        tensors, layers = len(self.parameters), len(self.normalizers)
        return [f"frozen: parameters ({tensors} tensors), statistics of normalizers ({layers})"] if any(self) else []


def freeze_parts(model: nn.Module, weights: Sequence[str], statistics: Sequence[str] | None) -> Frozen:
    """Fixes the parameters of some modules, and the statistics of the normalizers in some.

    A normalizer of fixed statistics is in evaluation mode whatever the network's mode is: it normalizes by its running
    averages and leaves them; en's ratios still follow from the image. One of fixed parameters alone uses the batch's
    and averages on. Dropout acts in either.

    Args:
        weights, statistics: names of modules, or patterns of fnmatch for them; None for statistics: the same modules.
    Raises: ValueError for one that is no module's, that leaves nothing to learn, or has no normalizer where statistics
        are fixed, as `freeze=NAME: expected ...`.
    """
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for part in chosen(model, weights, "freeze"):
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze={shown(list(weights))}: expected some parameter that is left to learn")
    parts = chosen(model, weights if statistics is None else statistics, "freeze_statistics")
    layers = {layer for part in parts if has_normalizers(part) for layer in normalizers(part)}
    if statistics and not layers:
        raise ValueError(f"freeze_statistics={shown(list(statistics))}: expected modules with normalizers in them")
    for layer in layers:
        freeze(layer, parameters=False)
    return Frozen(
        [name for name in learned if not model.get_parameter(name).requires_grad],
        [name for name, layer in model.named_modules() if layer in layers],
    )


def chosen(model: nn.Module, patterns: Sequence[str], key: str) -> list[nn.Module]:
    """Lists the modules of these names. Raises ValueError for a name or pattern of none, with the nearest names."""
    modules = {name: module for name, module in model.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        names = matching(modules, pattern)
        if not names:
            near = difflib.get_close_matches(pattern[:100], modules, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"as {', '.join(list(modules)[:6])}"
            raise ValueError(f"{key}={shown(pattern)}: expected the name of a module, or a pattern for some ({hint})")
        found |= {name: modules[name] for name in names}
    return list(found.values())
