"""The normalizers of a network as they were built, layer by layer.

What was asked for does not say it all: eps and momentum come from the layers that a normalizer replaced, which may
differ within one network, and defaults may be other ones tomorrow.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from en.norm.base import Normalizer, RunningNormalizer
from en.norm.registry import NORMALIZERS, build_norm, name_of, options_of
from en.norm.replace import finish_fused, put

Options = Mapping[str, object]


def layers_as_built(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns all options of each normalizer of NORMALIZERS, by its place in the network."""
    kinds = tuple(NORMALIZERS.values())
    return {place: options_of(layer) for place, layer in model.named_modules() if type(layer) in kinds}


def in_one(layers: Mapping[str, Options]) -> dict[str, Any]:
    """Returns the options of a network's layers as one: where they differ, how many layers have which value."""
    names = dict.fromkeys(name for options in layers.values() for name in options)
    counts = {name: Counter(json.dumps(options.get(name)) for options in layers.values()) for name in names}
    return {
        name: json.loads(next(iter(values))) if len(values) == 1 else dict(sorted(values.items()))
        for name, values in counts.items()
    }


def rebuild(model: nn.Module, layers: Mapping[str, Options]) -> nn.Module:
    """Puts layers with these options in the place of those that have others, and returns the model.

    Their parameters and buffers are new: this is for a network whose weights are loaded next. Raises: ValueError that
    names the place of options that no layer takes.
    """
    new: dict[int, nn.Module] = {}
    for place, options in layers.items():
        old = model.get_submodule(place)
        if not isinstance(old, Normalizer) or options_of(old) == options:
            continue
        try:
            norm = build_norm(name_of(old), old.num_features, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        norm.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)
        norm.place = old.place
        if isinstance(norm, RunningNormalizer):
            norm.averages_for_one = getattr(old, "averages_for_one", False)
        if hasattr(old, "act"):
            finish_fused(norm, old)
        new[id(old)] = norm
    return put(model, new)
