"""The YAML that configurations are written in: version 1.2's core schema and no more."""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from en.errors import UserError, shown
from en.text_file import read_text

Tree = dict[str, Any]

MAX_DEPTH = 20  # nested lists and sections
TAG = "tag:yaml.org,2002:"
PATTERNS = {  # of the scalars that are not strings: YAML 1.2.2, section 10.3.2
    "null": re.compile(r"(null|Null|NULL|~|)\Z"),
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
}


class StrictLoader(yaml.SafeLoader):
    """Reads YAML 1.2's core schema: 010 is ten, 0o10 eight, 1e-4 a number; on, 1_000, 1:30 and << are strings.

    Besides what the schema lacks, it refuses aliases, keys that are not strings, duplicate keys, integers of more than
    64 bits and nesting deeper than MAX_DEPTH (our choice: none has a use here, and each can be made to hang a reader).
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            refuse("aliases (*name) are not supported: expected the value itself", mark)
        if self.depth > MAX_DEPTH:
            refuse(f"expected at most {MAX_DEPTH} nested lists and sections", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> Tree:  # type: ignore[override]
        if not isinstance(node, yaml.MappingNode):
            refuse("expected a section of keys and values", node.start_mark)
        tree: Tree = {}
        for key, value in node.value:
            if key.tag != f"{TAG}str" or not isinstance(key, yaml.ScalarNode):
                refuse("expected a string as key", key.start_mark)
            if key.value in tree:
                refuse(f"duplicate key {shown(key.value)}: expected each key once", key.start_mark)
            tree[key.value] = self.construct_object(value, deep=deep)
        return tree

    def construct_plain(self, node: yaml.ScalarNode) -> object:
        """The value of a null, bool, int or float."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(TAG)
        assert isinstance(text, str)
        if not PATTERNS[kind].match(text):
            refuse(f"{shown(text)}: expected {kind}", node.start_mark)
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "float":
                return float(re.sub(r"\.(?=[a-z])", "", text.lower()))
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) < 30 else 2**64
        if abs(value) >= 2**64:
            refuse(f"{shown(text)}: expected an integer of at most 64 bits", node.start_mark)
        return value

    def construct_undefined(self, node: yaml.Node) -> NoReturn:
        refuse(f"the tag {shown(node.tag)} is not supported: expected a value without it", node.start_mark)


class StrictDumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""


StrictLoader.yaml_implicit_resolvers = {}
StrictLoader.yaml_constructors = {
    f"{TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{TAG}map": yaml.SafeLoader.construct_yaml_map,
    None: StrictLoader.construct_undefined,
}
for kind, pattern in PATTERNS.items():
    StrictLoader.add_constructor(f"{TAG}{kind}", StrictLoader.construct_plain)
    StrictLoader.add_implicit_resolver(f"{TAG}{kind}", pattern, None)
    StrictDumper.add_implicit_resolver(f"{TAG}{kind}", pattern, None)


def refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def read_yaml(text: str) -> Any:
    """Parses a YAML text. Raises ValueError: one line that says what is wrong and where."""
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """A YAML error's message, with line and column, on one line."""
    if not isinstance(error, yaml.YAMLError):
        return "found a character that does not exist"  # an escape in quotes
    mark, problem = (
        getattr(error, "problem_mark", None),
        getattr(error, "problem", None) or " ".join(str(error).split()),
    )
    if problem.startswith("but "):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def read_tree(path: Path, expected: str = "a YAML configuration file") -> Tree:
    """Reads a YAML file's mapping. Raises UserError that names the file and what was expected."""
    text = read_text(path, expected)
    try:
        tree = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: expected YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {'nothing' if tree is None else shown(tree)}")
    return tree


def to_yaml(tree: Tree) -> str:
    """The mapping as YAML that `read_yaml` reads back unchanged."""
    return yaml.dump(tree, Dumper=StrictDumper, sort_keys=False, default_flow_style=None, width=120)
