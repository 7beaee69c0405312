"""A suite's file: what may stand in it."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator

from en.config.reading import meant
from en.config.section import PathText, Section, first_problem
from en.config.strict_yaml import read_tree
from en.errors import UserError, shown

KIND = "a YAML file of a suite, see configs/ablations/"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
OF_EACH_RUN = {  # keys that the plan gives each run a value of its own for, and where a suite says what they may be
    "seed": "the suite's key seeds, as in seeds: [0, 1, 2]",
    "run_dir": "--out DIR, the folder of all runs",
    "resume": "none: the same command resumes the runs that were interrupted",
}


def instead_of(key: str) -> str | None:
    """Says what a suite has in place of a key, dotted or with its value, that the plan writes over; None for others."""
    return OF_EACH_RUN.get(re.split("[.=]", key)[0])


def refuse_of_each_run(keys: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a dotted key whose value the plan would write over."""
    for key, value in keys.items():
        if expected := instead_of(key):
            raise ValueError(f"{key}={shown(value)}: expected {expected}")
    return keys


Keys = Annotated[dict[str, Any], AfterValidator(refuse_of_each_run)]
Values = Annotated[list[Any], Field(min_length=1, max_length=1000)]


class Suite(Section):
    """Holds what stands in a suite's file.

    Attributes:
        base: the configuration that all runs share, relative to the suite's file.
        seeds: of every variant; None for the base's own.
        set: dotted keys over the base, for every run.
        grid: dotted keys with the values that each takes; every combination is a variant.
        variants: dotted keys by the variant's name. With a grid too, every variant is run in every combination.
    """

    base: PathText
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] | None = None
    set: Keys = Field(default_factory=dict)
    grid: Annotated[dict[str, Values], AfterValidator(refuse_of_each_run)] = Field(default_factory=dict)
    variants: Annotated[dict[Name, Keys], Field(max_length=1000)] = Field(default_factory=dict)

    @field_validator("seeds", "grid")
    @classmethod
    def _different(cls, found: Any) -> Any:
        for name, values in found.items() if isinstance(found, dict) else [("", found or [])]:
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                raise ValueError(f"{name}={shown(values)}: expected different values".removeprefix("="))
        return found


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises UserError that names the file and the key."""
    tree = read_tree(path, KIND)
    try:
        return Suite.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error, explain_unknown)}") from error


def explain_unknown(place: tuple[int | str, ...]) -> str:
    key = ".".join(map(str, place))
    return f"unknown key {shown(key)}{meant(key, list(Suite.model_fields))}"
