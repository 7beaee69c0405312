"""A configuration from a YAML file, its base and the command line's key=value; whatever is wrong is one UserError."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from en.config.schema import Config
from en.config.section import first_problem
from en.config.strict_yaml import Tree, read_tree, read_yaml, to_yaml
from en.errors import UserError, shown
from en.norm.registry import norm_options
from en.tasks import DEFAULT, task_class

PARTS = 4  # of a dotted key, at most
MOVED = {
    **{f"train.{key}": f"task.{key}" for key in ("label_smoothing", "mixup", "cutmix")},
    **{f"data.{key}": f"task.{key}" for key in ("crop_scale", "crop_ratio", "flip", "centre_share")},
}  # keys by their earlier names


def load_config(path: str, overrides: list[str]) -> Config:
    """The configuration of a YAML file with `key.sub=value` overrides applied.

    Raises: UserError naming the file or override, the key, its value and what was expected.
    """
    return validate(overridden(read_with_base(path), overrides, path), path)


def read_with_base(path: str) -> Tree:
    """Reads what a configuration's file says over its base, unchecked. Raises UserError as `load_config`."""
    tree = read_tree(Path(path))
    base, taken_away = tree.pop("base", None), pop_without(tree, path)
    if base is None:
        if taken_away:
            raise UserError(f"{path}: without={shown(taken_away)}: expected a base, of which these would be keys")
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base={shown(base)}: expected the path of a YAML file, relative to this one")
    base_path = Path(path).parent / base
    base_tree = read_tree(base_path)
    for key in ("base", "without"):
        if key in base_tree:
            raise UserError(f"{base_path}: expected no {key}: it is itself the base of {path}")
    return laid_over(take_away(base_tree, taken_away, path, str(base_path)), tree)


def overridden(tree: Tree, overrides: Iterable[str], source: str) -> Tree:
    """Lays `key=value` over the values of a configuration, all at once, so that their order is of no matter.

    Args:
        source: where the values are from, for messages.
    Raises: UserError for a text of another form, and for `without=KEY` of a key that is not there.
    """
    above: Tree = {}
    for text in overrides:
        layer = parse_override(text)
        tree = take_away(tree, pop_without(layer, f"argument {shown(text)}"), f"argument {shown(text)}", source)
        above = merged(above, layer)
    return laid_over(tree, above)


def pop_without(tree: Tree, where: str) -> list[str]:
    """Takes the key `without` out of a file's or override's tree, and returns the dotted keys that it lists."""
    listed = tree.pop("without", [])
    keys = [listed] if isinstance(listed, str) else listed
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{where}: without={shown(listed)}: expected a dotted key, or a list of them")
    return keys


def take_away(tree: Tree, keys: Iterable[str], where: str, source: str) -> Tree:
    """Returns values without some keys and sections, dotted. Raises UserError for one that `source` does not have."""
    for key in keys:
        known = [*flatten(tree), *sections(tree)]
        if key not in known:
            raise UserError(f"{where}: without={shown(key)}: expected a key that {source} sets{meant(key, known)}")
        tree = without(tree, key.split("."))
    return tree


def without(tree: Tree, parts: list[str]) -> Tree:
    first, *rest = parts
    left = {key: value for key, value in tree.items() if key != first}
    return {**tree, first: without(tree[first], rest)} if rest else left


def sections(tree: Tree, prefix: str = "") -> list[str]:
    """Lists the dotted names of the sections of a configuration, and of those within them."""
    inner = {prefix + key: value for key, value in tree.items() if isinstance(value, dict)}
    return [*inner, *(name for key, value in inner.items() for name in sections(value, f"{key}."))]


def parse_override(text: str) -> Tree:
    """`a.b=value` as {"a": {"b": value}}, the value read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or len(parts) > PARTS or not all(re.fullmatch(r"\w+", part) for part in parts):
        raise UserError(f"argument {shown(text)}: expected key=value or key.sub=value")
    if parts[0] == "base":
        raise UserError(f"argument {shown(text)}: base is a key of configuration files only: expected another CONFIG")
    try:
        tree: Any = read_yaml(value)
    except ValueError as error:
        raise UserError(f"argument {shown(text)}: expected a YAML value: {error}") from error
    for part in reversed(parts):
        tree = {part: tree}
    return dict(tree)


def laid_over(below: Tree, above: Tree) -> Tree:
    """`above` laid over `below`, key by key; but nothing stays of what belongs to another `name` than the one above.

    That is the whole section of another normalizer or task, and the options of another network. A schedule's keys are
    those of all schedules.
    """
    for section, default in (("norm", None), ("task", DEFAULT), ("model", None)):
        old, new = below.get(section), above.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        before = old.get("name", default)
        if before is not None and new.get("name", before) != before:
            kept = {key: value for key, value in old.items() if key != "options"} if section == "model" else {}
            below = {**below, section: kept}
    return merged(below, above)


def merged(below: Tree, above: Tree) -> Tree:
    """`above` laid over `below`, mapping by mapping, whatever they name."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def flatten(tree: Tree, prefix: str = "") -> Tree:
    """A configuration's values under their dotted keys."""
    flat: Tree = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def validate(tree: Tree, where: str) -> Config:
    """A Config from plain values. Raises UserError for one thing that is wrong, with the number of the others."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, lambda place: explain_unknown(place, tree))}") from error


def explain_unknown(location: tuple[int | str, ...], tree: Tree) -> str:
    """That a key is unknown, with a hint at the one that may be meant."""
    key, known = ".".join(map(str, location)), known_keys(tree)
    if MOVED.get(key) in known:
        return f"unknown key {key!r}: expected {MOVED[key]}, its name now"
    if key in known:
        section, _, name = key.rpartition(".")
        return f"unknown key {key!r}: expected {name} in the section {section}"
    return f"unknown key {shown(key)}{meant(key, known)}"


def meant(key: str, known: list[str]) -> str:
    """', did you mean ...?' with the nearest key, of the same section or else of any; '' where none is near."""
    section, _, word = key.rpartition(".")
    for candidates in ([name for name in known if name.rpartition(".")[0] == section], known):
        names = {name.rpartition(".")[2]: name for name in candidates}
        if close := get_close_matches(word[:100], names, n=1):
            return f" (did you mean {names[close[0]]!r}?)"
    return ""


def known_keys(tree: Tree) -> list[str]:
    """Every key of the configuration, dotted, with the options of the chosen normalizer and task."""

    def fields(section: type[BaseModel], prefix: str) -> list[str]:
        names = []
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
            names += [prefix + name, *(fields(inner, f"{prefix}{name}.") if inner else [])]
        return names

    def chosen(section: str, options: Callable[[str], Iterable[str]], default: str = "") -> list[str]:
        keys = tree.get(section)
        name = keys.get("name", default) if isinstance(keys, dict) else default
        try:
            return [f"{section}.{option}" for option in options(str(name))]
        except ValueError:
            return []

    return [
        *fields(Config, ""),
        *chosen("norm", norm_options),
        *chosen("task", lambda name: task_class(name).model_fields, DEFAULT),
    ]


def dump(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to the same."""
    return to_yaml(config.model_dump())
