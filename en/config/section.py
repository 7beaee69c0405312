"""Sections of typed keys, of which configurations and summaries consist; the messages for what does not fit."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from en.errors import shown
from en.size import as_key, size_of

LARGEST_SIDE = 8192  # pixels


class Section(BaseModel):
    """Keys and values among which nothing unknown and nothing of another type passes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def printable(text: str) -> str:
    """`text` unless it holds control characters, line breaks or broken Unicode."""
    if not text.isprintable():
        raise ValueError("expected printable characters only")
    return text


def path_name(text: str) -> str:
    """`text` if its parts are short enough for a file system."""
    if any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("expected a path whose parts have at most 255 bytes")
    return text


def sides(value: object) -> int | list[int]:
    """A key for a size: the side of a square, or height and width; of two that are equal, one."""
    pair: list[Any] = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in pair):
        raise ValueError(f"expected an integer from 1 to {LARGEST_SIDE}, or two, height and width")
    return as_key(size_of(pair))


def is_plain(value: object) -> bool:
    """Tells whether a value is a truth value, a finite number, a printable string, or a list or section of such."""
    if isinstance(value, dict):
        return all(is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value.isprintable() if isinstance(value, str) else isinstance(value, (int, float)) and math.isfinite(value)


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]
Count = Annotated[int, Field(ge=0, le=10**15)]
SIDE = {"type": "integer", "minimum": 1, "maximum": LARGEST_SIDE}
Sides = Annotated[
    int | list[int],
    BeforeValidator(sides),
    WithJsonSchema({"anyOf": [SIDE, {"type": "array", "items": SIDE, "minItems": 2, "maxItems": 2}]}),
]
PathText = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(printable), AfterValidator(path_name)]

EXPECTED = {  # by pydantic's name of the error
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_unicode": "a string of whole Unicode characters",
    "list_type": "a list",
    "model_type": "a section of keys and values",
    "dict_type": "a section of keys and values",
    "greater_than": "a number greater than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "a number less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "a string that is not empty",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
}


def explain(problem: Any) -> str:
    """One of pydantic's errors in the form `key=value: expected ...`."""
    key = ".".join(str(part) for part in problem["loc"])
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    value = f"{key}={'a section' if isinstance(problem['input'], dict) else shown(problem['input'])}".removeprefix("=")
    if kind == "missing":
        return f"{key}: missing: expected a value"
    if kind in EXPECTED:
        return f"{value}: expected {EXPECTED[kind].format(**problem.get('ctx', {}))}"
    if kind != "value_error" or message.startswith("expected"):
        return f"{value}: {message}"
    return f"{key}{'.' if re.match(r'[a-z0-9_]+=', message) else ': '}{message}" if key else message


def first_problem(error: ValidationError, explain_unknown: Callable[[tuple[int | str, ...]], str]) -> str:
    """One thing that is wrong, with the number of the others.

    An unknown key comes first: it may be a misspelt one, which would otherwise be reported as missing.

    Args:
        explain_unknown: what to say of an unknown key, by its place.
    """
    order = {"extra_forbidden": 0, "missing": 2}
    first, *others = sorted(error.errors(), key=lambda problem: order.get(problem["type"], 1))
    reason = explain_unknown(first["loc"]) if first["type"] == "extra_forbidden" else explain(first)
    return f"{reason} (and {len(others)} more)" if others else reason
