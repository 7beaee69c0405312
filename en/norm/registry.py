"""Normalizers by name."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from en.norm.base import Normalizer
from en.norm.exemplar import ExemplarNorm2d
from en.norm.single import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from en.norm.sparse import SparseSwitchableNorm2d
from en.norm.statistics import default_groups
from en.norm.switchable import SwitchableNorm2d
from en.norm.weight_options import option

NORMALIZERS: dict[str, type[Normalizer]] = {
    "bn": BatchNorm2d,
    "in": InstanceNorm2d,
    "ln": LayerNorm2d,
    "gn": GroupNorm2d,
    "sn": SwitchableNorm2d,
    "ssn": SparseSwitchableNorm2d,
    "en": ExemplarNorm2d,
}

AS_PUBLISHED: dict[str, dict[str, object]] = {
    "sn": {"min_pixels": 1},
    "en": {"min_pixels": 1, "gate_pixels": 1},
}
"""The options of the papers' forms where they are not the defaults: `build_norm("en", C, **AS_PUBLISHED["en"])`."""

INHERITED = ("eps", "momentum", "sync")
"""Options that replace_norm takes from the layer that it replaces, where they are not given."""

NO_OPTIONS = ("self", "num_features", "device", "dtype")
"""Arguments of the constructors that are given by the network that the layer is put into."""


def norm_options(name: str) -> dict[str, inspect.Parameter]:
    """The options that `build_norm(name, ...)` takes, with their defaults. Raises ValueError for an unknown name."""
    if name not in NORMALIZERS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(NORMALIZERS)}{did_you_mean(name, NORMALIZERS)}")
    parameters = inspect.signature(NORMALIZERS[name].__init__).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in NO_OPTIONS}


def norm_defaults(name: str) -> dict[str, object]:
    """The options of a normalizer with their defaults as a file has them, lists for tuples; of an unknown one, none."""
    options = norm_options(name) if name in NORMALIZERS else {}
    values = {key: option.default for key, option in options.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def options_of(layer: Normalizer) -> dict[str, Any]:
    """Returns all options with which a layer of NORMALIZERS was built, those that it inherited included.

    `groups` are as given: None where they are those of the default.
    """
    options = {key: option(layer, key) for key in norm_options(name_of(layer)) if key != "groups"}
    if "groups" in norm_options(name_of(layer)):
        groups = option(layer, "groups")
        options["groups"] = None if groups == default_groups(layer.num_features) else groups
    return options


def name_of(layer: Normalizer) -> str:
    """Returns the name of a layer in NORMALIZERS. Raises ValueError for a class that is not there."""
    for name, kind in NORMALIZERS.items():
        if type(layer) is kind:
            return name
    raise ValueError(
        f"{type(layer).__name__}: expected one of {', '.join(kind.__name__ for kind in NORMALIZERS.values())}"
    )


def build_norm(name: str, num_features: int, /, **options: object) -> Normalizer:
    """A normalizer for (N, num_features, H, W), freshly initialized.

    Args:
        name: a key of NORMALIZERS.
        options: the class's keyword arguments.
    Raises: ValueError that names an unknown normalizer or option, or a bad value, and says what is allowed.
    """
    allowed = norm_options(name)
    for key in options:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise ValueError(f"option {key!r} of normalizer {name!r}: expected one of {', '.join(allowed)}{hint}")
    return NORMALIZERS[name](num_features, **options)  # type: ignore[arg-type]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for a near miss, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
