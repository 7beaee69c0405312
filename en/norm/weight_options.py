"""The options of a layer: as it was built, and as they travel with the weights of en, sn and ssn.

The same weights compute something else in a layer of other options, so that a state_dict holds the options beside them:
as JSON in a tensor of bytes, because files of weights hold tensors and nothing else.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

KEY = "_extra_state"
"""torch's name in a state_dict for what a module keeps there besides parameters and buffers."""

ATTRIBUTES = {"ratios": "ratio_source"}  # of a layer, where they are not called as the constructor's arguments


def option(layer: nn.Module, name: str) -> Any:
    """Returns a constructor's argument as the layer has it, as JSON has it: lists for tuples."""
    value = getattr(layer, ATTRIBUTES.get(name, name))
    if isinstance(value, tuple):
        return list(value)
    return float(value) if isinstance(value, float) else value


def written(options: Mapping[str, object]) -> str:
    """Returns options as JSON."""
    return json.dumps(options, sort_keys=True)


def packed(text: str) -> Tensor:
    """Returns text as a tensor of bytes."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def differences(place: str, state: object, own: Mapping[str, object], kind: type[nn.Module]) -> list[str]:
    """Returns why weights do not belong into a layer, for people; nothing where they do.

    Args:
        place: of the layer, for messages.
        state: what a state_dict holds of the weights' options; an option of which it does not tell has its default.
        own: the layer's options.
        kind: the layer's class.
    """
    try:
        if not isinstance(state, Tensor) or state.dtype != torch.uint8:
            raise ValueError(f"a {type(state).__name__}")
        then = json.loads(bytes(state.flatten().tolist()))
        if not isinstance(then, dict):
            raise ValueError(f"a {type(then).__name__}")
    except ValueError as error:
        return [f"{place}.{KEY}: expected options of the layer as JSON in a tensor of bytes: {error}".lstrip(".")]
    defaults = {name: argument.default for name, argument in inspect.signature(kind.__init__).parameters.items()}
    before = {name: then.get(name, defaults.get(name)) for name in {**own, **then}}
    changed = [name for name in before if before[name] != own.get(name)]
    found, wanted = (", ".join(f"{name}={values.get(name)}" for name in changed) for values in (before, own))
    why = f"weights of {found} for a layer of {wanted}: expected the same, or en.norm.without_options(state_dict)"
    return [f"{place}: {why}".lstrip(": ")] if changed else []


def without_options(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state_dict without what it says of options, to load it into layers of other ones on purpose."""
    return {name: value for name, value in state_dict.items() if name.rpartition(".")[2] != KEY}
