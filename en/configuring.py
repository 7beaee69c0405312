"""A configuration from a YAML file, its base and the command line's key=value; whatever is wrong is one UserError."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from en.config import Config
from en.errors import UserError
from en.norm.registry import did_you_mean, norm_options

Tree = dict[str, Any]


class StrictLoader(yaml.SafeLoader):
    """YAML 1.2's reading of numbers and booleans (1e-4 is a number; on, no and yes are words), duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Tree:  # type: ignore[override]
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands here a second time", problem_mark=mark)
        return super().construct_mapping(node, deep)  # type: ignore[return-value]


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false|True|False|TRUE|FALSE)$"), list("tfTF"))
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def load_config(path: str, overrides: list[str]) -> Config:
    """The configuration of a YAML file with `key.sub=value` overrides applied.

    Raises: UserError naming the file or override, the key, its value and what was expected.
    """
    tree = read_tree(Path(path))
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base={base!r}: expected the path of a YAML file, relative to this one")
        base_path = Path(path).parent / base
        base_tree = read_tree(base_path)
        if "base" in base_tree:
            raise UserError(f"{base_path}: expected no base: it is itself the base of {path}")
        tree = merged(base_tree, tree)
    for override in overrides:
        tree = merged(tree, parse_override(override))
    return validate(tree, path)


def read_tree(path: Path) -> Tree:
    """A YAML file's mapping."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: {reason}: expected a YAML configuration file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: expected YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(tree).__name__}")
    return tree


def one_line(error: Exception) -> str:
    """What a YAML error says, with its line number, on one line."""
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or ' '.join(str(error).split())}{place}"


def parse_override(text: str) -> Tree:
    """`a.b=value` as {"a": {"b": value}}, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(re.fullmatch(r"\w+", part) for part in key.split(".")):
        raise UserError(f"argument {text!r}: expected key=value or key.sub=value")
    try:
        tree: Any = yaml.load(value, StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"argument {text!r}: expected a YAML value: {one_line(error)}") from error
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def merged(below: Tree, above: Tree) -> Tree:
    """`above` laid over `below`, mapping by mapping."""
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
    """A Config from plain values. Raises UserError for the first thing that is wrong, counting the others."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{where}: {explain(first, tree)}{more}") from error


def explain(problem: Any, tree: Tree) -> str:
    """One of pydantic's errors in the form `key=value: expected ...`."""
    location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(str(part) for part in location)
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = known_keys(tree)
        siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"unknown key {key!r}{did_you_mean(key, siblings) or did_you_mean(key, known) or other_section(key, known)}"
    if kind == "missing":
        return f"{key}: missing: expected a value"
    if kind == "value_error":
        return f"{key}{'.' if re.match(r'[a-z0-9_]+=', message) else ': '}{message}" if key else message
    expected = re.sub(r"^\w+ should (be|have) (a valid )?", "", message).replace(" after validation", "")
    expected = re.sub(r"dictionary or instance of \w+", "a section of keys and values", expected)
    shown = "a section" if isinstance(problem["input"], dict) else repr(problem["input"])
    return f"{key}={shown}: expected {expected}"


def known_keys(tree: Tree) -> list[str]:
    """Every key of the configuration, dotted, with the options of the chosen normalizer."""

    def fields(section: type[BaseModel], prefix: str) -> list[str]:
        names = []
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
            names += [prefix + name, *(fields(inner, f"{prefix}{name}.") if inner else [])]
        return names

    norm = tree.get("norm")
    name = norm.get("name") if isinstance(norm, dict) else None
    try:
        options = list(norm_options(str(name)))
    except ValueError:
        options = []
    return fields(Config, "") + [f"norm.{option}" for option in options]


def other_section(key: str, known: list[str]) -> str:
    """A hint at a key of the same last name elsewhere."""
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f" (did you mean {same[0]!r}?)" if same else ""


def dump(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, default_flow_style=None, width=120)
