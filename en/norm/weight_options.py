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


def packed(options: Mapping[str, object]) -> Tensor:
    """Returns options as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(options, sort_keys=True).encode()), dtype=torch.uint8)


def unpacked(state: object) -> dict[str, Any]:
    """Returns the options in a tensor of bytes, of whatever type they have become. Raises ValueError."""
    if not isinstance(state, Tensor):
        raise ValueError(f"a {type(state).__name__}")
    try:
        found = json.loads(bytes(state.flatten().round().to(torch.uint8).tolist()) if state.is_floating_point() else
                           bytes(state.flatten().tolist()))  # fmt: skip
    except Exception as error:  # of a tensor without values, of text that is no JSON or nested too deep
        raise ValueError(f"{state.dtype}: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    return found


def differences(place: str, state: object, own: Mapping[str, object], kind: type[nn.Module]) -> list[str]:
    """Returns why weights do not belong into a layer, for people; nothing where they do.

    Args:
        place: of the layer, for messages.
        state: what a state_dict holds of the weights' options; an option of which it does not tell has its default.
        own: the layer's options.
        kind: the layer's class.
    """
    try:
        then = unpacked(state)
    except ValueError as error:
        why = f"expected options of the layer as JSON in a tensor of bytes: {error}: see en.norm.without_options"
        return [f"{place}.{KEY}: {why}".lstrip(".")]
    before = {**own, **plain_defaults(kind), **then}
    changed = [name for name in {**own, **then} if before[name] != own.get(name)]
    found, wanted = (", ".join(f"{name}={values.get(name)}" for name in changed) for values in (before, own))
    why = f"weights of {found} for a layer of {wanted}: expected the same, or en.norm.without_options(state_dict)"
    return [f"{place}: {why}".lstrip(": ")] if changed else []


def plain_defaults(kind: type[nn.Module]) -> dict[str, object]:
    """Returns the defaults of a class's options as JSON has them; not those that follow from other arguments."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    values = {each.name: each.default for each in parameters if each.default not in (inspect.Parameter.empty, None)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def without_options(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state_dict without what it says of options, to load it into layers of other ones on purpose."""
    return {name: value for name, value in state_dict.items() if name.rpartition(".")[2] != KEY}
