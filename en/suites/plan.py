"""A suite's file as the runs that it names: nothing is read but configurations, nothing is written."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from en.config.reading import flatten, load_config, parse_override, read_with_base
from en.config.schema import Config
from en.config.strict_yaml import Tree
from en.errors import UserError, shown, warn
from en.suites.suite import Suite, instead_of, read_suite

MOST_RUNS = 10_000


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


def plan(path: Path, out: Path, overrides: list[str], base: Path | None = None) -> list[Planned]:
    """Every run of a suite, checked; seed by seed, so that a suite that is cut short has every variant.

    Args:
        path: the suite's file.
        out: the folder whose subfolders the runs are.
        overrides: `key=value` over every run.
        base: another configuration than the suite's. Its seed is that of a suite without seeds; its run_dir and resume
            are of no run of a suite, which a warning says.
    Raises: UserError for a suite, a variant or an override that is wrong, for one whose value another would write over,
        and for two variants of one name.
    """
    suite = read_suite(path)
    for text in overrides:
        if expected := instead_of(text):
            raise UserError(f"argument {shown(text)}: expected {expected}")
    base = base or path.parent / suite.base
    described = read_base(base, path)
    seeds = suite.seeds or [described.get("seed", 0)]
    variants = expand(suite)
    if len(variants) * len(seeds) > MOST_RUNS:
        raise UserError(f"{path}: {len(variants)} variants x {len(seeds)} seeds: expected at most {MOST_RUNS} runs")
    names = [name for name, _ in variants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two variants are named {name}: expected different names")
    runs = [
        planned(path, base, out, name, [*as_overrides(suite.set), *keys, *overrides], seed)
        for seed in seeds
        for name, keys in variants
    ]
    refuse_beside_grid(suite, path, overrides)
    warn_of_unused(described, base, out)
    return runs


def read_base(base: Path, suite: Path) -> Tree:
    """Reads what the suite's base says, unchecked: what it lacks may be in the suite."""
    try:
        return read_with_base(str(base))
    except UserError as error:
        raise UserError(f"{suite}: {error}") from error


def refuse_beside_grid(suite: Suite, path: Path, overrides: list[str]) -> None:
    """Raises UserError for a key of the grid that a variant or the command line sets too: one value would be lost.

    With the command line's, runs would be named by values that they do not have.
    """
    grid = keys_of(f"{key}={json.dumps(value)}" for key, values in suite.grid.items() for value in values)
    for text in overrides:
        if found := keys_of([text]) & grid:
            raise UserError(
                f"argument {shown(text)}: expected a key that the grid of {path} does not vary: {min(found)}"
            )
    for name, keys in suite.variants.items():
        if found := keys_of(as_overrides(keys)) & grid:
            raise UserError(f"{path}: variants.{name}.{min(found)}: expected a key that the grid does not vary")


def keys_of(overrides: Iterable[str]) -> set[str]:
    """Lists the dotted keys that overrides set."""
    return {key for text in overrides for key in flatten(parse_override(text))}


def warn_of_unused(described: Tree, base: Path, out: Path) -> None:
    """Warns of what a base says of its own run alone."""
    if described.get("run_dir") is not None:
        warn(f"{base}: run_dir={shown(described['run_dir'])}: not for a suite's runs, which are in {out}")
    if described.get("resume") not in (None, "auto"):
        warn(f"{base}: resume={shown(described['resume'])}: not for a suite's runs: each resumes in its own folder")


def planned(path: Path, base: Path, out: Path, variant: str, keys: list[str], seed: int) -> Planned:
    folder = out / f"{variant}-s{seed}"
    overrides = [*keys, f"seed={json.dumps(seed)}", f"run_dir={json.dumps(str(folder))}"]
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


def as_overrides(keys: Tree) -> list[str]:
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
