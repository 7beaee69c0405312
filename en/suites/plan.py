"""A suite's file as the runs that it names: pure, nothing is read but configurations."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from en.config.reading import load_config, meant
from en.config.schema import Config
from en.config.section import PathText, Section, first_problem
from en.config.strict_yaml import read_tree
from en.errors import UserError, shown

KIND = "a YAML file of a suite, see configs/ablations/"
MOST_RUNS = 10_000
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Keys = dict[str, Any]


class Suite(Section):
    """What stands in a suite's file.

    Attributes:
        base: the configuration that all runs share, relative to the suite's file.
        seeds: of every variant.
        set: dotted keys over the base, for every run.
        grid: dotted keys with the values that each takes; every combination is a variant.
        variants: dotted keys by the variant's name. With a grid too, every variant is run in every combination.
    """

    base: PathText
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] = Field(default=[0])
    set: Keys = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1, max_length=1000)]] = Field(default_factory=dict)
    variants: Annotated[dict[Name, Keys], Field(max_length=1000)] = Field(default_factory=dict)

    @field_validator("seeds", "grid")
    @classmethod
    def _different(cls, found: Any) -> Any:
        for name, values in found.items() if isinstance(found, dict) else [("", found)]:
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                raise ValueError(f"{name}={shown(values)}: expected different values".removeprefix("="))
        return found


@dataclass(frozen=True)
class Planned:
    """One run of a suite.

    Attributes:
        variant: its name without the seed.
        folder: of the run.
        base: the file of its configuration.
        overrides: `key=value` over it, run_dir included, resume not.
        config: all that resolved.
    """

    variant: str
    folder: Path
    base: Path
    overrides: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        return self.folder.name


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


def plan(path: Path, out: Path, overrides: list[str], base: Path | None = None) -> list[Planned]:
    """Every run of a suite, checked; seed by seed, so that a suite that is cut short has every variant.

    Args:
        path: the suite's file.
        out: the folder whose subfolders the runs are.
        overrides: `key=value` over every run.
        base: another configuration than the suite's.
    Raises: UserError for a suite, a variant or an override that is wrong, and for two variants of one name.
    """
    suite = read_suite(path)
    base = base or path.parent / suite.base
    variants = expand(suite)
    if len(variants) * len(suite.seeds) > MOST_RUNS:
        raise UserError(
            f"{path}: {len(variants)} variants x {len(suite.seeds)} seeds: expected at most {MOST_RUNS} runs"
        )
    names = [name for name, _ in variants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two variants are named {name}: expected different names")
    return [
        planned(path, base, out, name, [*as_overrides(suite.set), *keys, *overrides], seed)
        for seed in suite.seeds
        for name, keys in variants
    ]


def planned(path: Path, base: Path, out: Path, variant: str, keys: list[str], seed: int) -> Planned:
    folder = out / f"{variant}-s{seed}"
    overrides = [*keys, f"seed={seed}", f"run_dir={json.dumps(str(folder))}"]
    try:
        config = load_config(str(base), overrides)
    except UserError as error:
        raise UserError(f"{path}: {variant}: {error}") from error
    return Planned(variant, folder, base, tuple(overrides), config)


def expand(suite: Suite) -> list[tuple[str, list[str]]]:
    """The variants' names and overrides, in the order of the file."""
    named = list(suite.variants.items()) or [("", {})]
    combinations = list(product(*([(key, value) for value in values] for key, values in suite.grid.items())))
    found = []
    for (name, keys), combination in product(named, combinations):
        parts = [name] if name else []
        parts += [value_name(key, value) for key, value in combination]
        found.append(("-".join(parts) or "base", as_overrides({**keys, **dict(combination)})))
    return found


def as_overrides(keys: Keys) -> list[str]:
    """Dotted keys and their values as on the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def value_name(key: str, value: object) -> str:
    """A grid's value as part of a folder's name: `bn` for norm.name, `hidden50` for norm.hidden, `bn+in` for a list."""
    last = key.rpartition(".")[2]
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    text = re.sub(r"[^A-Za-z0-9_.+]+", "_", text)
    return text if last == "name" or isinstance(value, list) else f"{last}{text}"


def variants_of(runs: Iterable[Planned]) -> dict[str, Planned]:
    """The first run of each variant."""
    found: dict[str, Planned] = {}
    for run in runs:
        found.setdefault(run.variant, run)
    return found
