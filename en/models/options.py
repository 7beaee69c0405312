"""Keyword arguments for the class of a library's network: named by it, of its type and within bounds, or refused."""

import contextlib
import difflib
import inspect
import io
import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import nn
from torch.nn.modules import module as hooks

from en.errors import shown

Options = Mapping[str, object]
Build = Callable[[Options], nn.Module]

MOST_PARAMETERS = 2**30  # 4 GiB in float32 (our choice)
MOST_LAYERS = 2**13  # the libraries' deepest network with batch normalization has 2,541 (our choice)
LARGEST = 2**16  # numbers in an option: more than any network's channels (our choice)
LARGEST_WINDOW = 32  # of attention, pixels: some classes list the pairs of its pixels one by one (our choice)
SET_HERE = {  # what classes of the libraries name besides
    "num_classes": "no such option: the data's classes are counted",
    "in_chans": "no such option: images have 3 channels",
    "norm_layer": "the key norm.name instead",
    "zero_init_residual": "the key model.zero_init_last_gamma instead",
    "zero_init_last": "the key model.zero_init_last_gamma instead",
    "init_weights": "no such option: weights are always initialized",
    "device": "the key device instead",
    "dtype": "the key train.precision instead",
    **dict.fromkeys(("aux_logits", "dropout_aux"), "no such option: networks are classifiers with one output"),
}
SET_HERE_FOR_TIMM = {"drop_rate": "the key model.dropout instead"}


class OptionError(ValueError):
    """An option that a network does not take: `options.KEY=value for NETWORK: expected ...`."""

    def __init__(self, name: str, options: Options, expected: str) -> None:
        listed = ", ".join(f"{key}: {shown(value)}" for key, value in options.items())
        text = f"options={{{listed}}}"
        if len(options) == 1:
            ((key, value),) = options.items()
            text = f"options.{key}={shown(value)}"
        super().__init__(f"{text} for {name}: expected {expected}")


def checked_options(name: str, options: Options, build: Build) -> dict[str, object]:
    """Returns the options in the types of the constructor, tuples for lists, after building the network with them.

    It is built on the meta device, where nothing is allocated. Whether a value changes it, is the library's matter.

    Args:
        name: the network's, for messages.
        options: plain values: truth values, numbers, strings, lists and mappings of them.
        build: builds the network with options.
    Raises: OptionError for an option that the network's class does not name, that is set elsewhere, is of another type
        or out of bounds, or that the library refuses.
    """
    if not options:
        return {}
    try:
        parameters = constructor_parameters(type(outline(build, {})))
    except Exception as error:  # libraries refuse in many ways
        raise OptionError(name, options, f"none: it cannot be built without computing: {reason(error)}") from error
    typed = {key: checked_value(name, key, value, parameters) for key, value in options.items()}
    try:
        outline(build, typed)
    except Exception as error:
        raise OptionError(name, options, f"what its library can build: {reason(error)}") from error
    return typed


def outline(build: Build, options: Options) -> nn.Module:
    """Builds the network on the meta device, where no number is drawn. Raises ValueError if too large or empty."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            return build(options)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends the construction of a network whose layers or parameters become too many, while they become so."""
    layers = parameters = 0

    def count_layer(module: nn.Module, place: str, layer: nn.Module | None) -> None:
        nonlocal layers
        layers += 1
        if layers > MOST_LAYERS:
            raise ValueError(f"more than {MOST_LAYERS} layers")

    def count_parameter(module: nn.Module, place: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        size = 1 if parameter is None else parameter.numel()
        if not size:
            raise ValueError(f"{place} of a {type(module).__name__} would be empty")
        parameters += size
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"more than {MOST_PARAMETERS} parameters")

    with (
        hooks.register_module_module_registration_hook(count_layer),
        hooks.register_module_parameter_registration_hook(count_parameter),
    ):
        yield


def constructor_parameters(network: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The named arguments of a class's constructor, with those of its bases as far as it hands further ones on."""
    found: dict[str, inspect.Parameter] = {}
    for kind in network.__mro__[: network.__mro__.index(nn.Module)]:
        if "__init__" not in vars(kind):
            continue
        parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {p.name: p for p in named} | found
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return found


def checked_value(name: str, key: str, value: object, parameters: Mapping[str, inspect.Parameter]) -> object:
    """One option's value in the type that the constructor's annotation states."""
    set_here = SET_HERE | (SET_HERE_FOR_TIMM if name.startswith("timm/") else {})
    if key in set_here:
        raise OptionError(name, {key: value}, set_here[key])
    allowed = [known for known in parameters if known not in set_here]
    if key not in allowed:
        close = difflib.get_close_matches(key[:100], allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise OptionError(name, {key: value}, f"one of {', '.join(allowed)}{hint}")
    largest = LARGEST_WINDOW if "window" in key else LARGEST
    if not within_bounds(value, largest):
        raise OptionError(name, {key: value}, f"numbers of at most {largest}")
    if ("drop" in key or "stochastic_depth" in key) and isinstance(value, (int, float)) and not 0 <= value < 1:
        raise OptionError(name, {key: value}, "a probability, at least 0 and less than 1")
    kind = annotation(parameters[key])
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        return adapter.validate_json(json.dumps(value))
    except (ValidationError, PydanticUserError) as error:
        text = inspect.formatannotation(kind).replace("typing.", "")
        raise OptionError(name, {key: value}, f"a value of the type {text}") from error


def annotation(parameter: inspect.Parameter) -> Any:
    """The type that a parameter states, or else its default's."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return Any if parameter.default in (None, parameter.empty) else type(parameter.default)


def within_bounds(value: object, largest: int) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    if parts is not None:
        return all(within_bounds(part, largest) for part in parts)
    return not isinstance(value, (int, float)) or abs(value) <= largest


def reason(error: Exception) -> str:
    """An error's message on one line; where it has none, the code that raised it."""
    words = " ".join(str(error).split())
    if isinstance(error, AssertionError) and not words:
        words = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}".removesuffix(": ")
