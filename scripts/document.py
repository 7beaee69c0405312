#!/usr/bin/env python3
"""Write what follows from the code: docs/tree.md, keys, protocols and hours in other pages, what docs/tour.md prints.

With --picture RUN also docs/ratios.svg, from what scripts/ratios.py left in RUN/ratios.
"""

import argparse
import ast
import contextlib
import doctest
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, UserError, exit_on_error

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120
COLUMN = 34  # of the tree, where the words begin
ROOMS = ("norm", "native", "models", "data", "distributed", "tasks", "config", "runs", "evaluation", "training",
         "suites", "reports", "benchmarks", "commands")  # fmt: skip
MARK = "<!-- From here on: written by scripts/document.py from the code. -->\n"
FENCE = re.compile(r"(?<=^```tree\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
SESSION = re.compile(r"(?<=^```pycon\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
SVG = "http://www.w3.org/2000/svg"
WORDS = {
    "configs": "what is trained, in YAML",
    "configs/ade20k": "FCN ResNet50 on ADE20K with bn, gn, sn and en, headed by command and figure",
    "configs/ade20k/bases": "the recipe that they share",
    "configs/cityscapes": "the same on Cityscapes",
    "configs/cityscapes/bases": "the recipe that they share",
    "configs/ablations": "suites: which runs belong together",
    "configs/imagenet": "ResNet50 and ShuffleNetV2 (x0.5, x1.0) with each normalizer, headed by command and figure",
    "configs/imagenet/bases": "the recipes that they share",
    "configs/quickstart": "the quickstart's recipe",
    "configs/small": "small sets and networks, for comparing normalizers on few cores",
    "en/data/jpeg_native": "JPEG files to pixels of a crop in C++, compiled when first used",
    "en/norm/kernels/cpu": "whole layers and the four passes in C++, compiled when first used",
    "en/norm/kernels/gpu/host": "all launches of a layer, one way, in one call of C++",
    "en/reports/uplot": "uPlot, which draws the charts of a page, as the npm registry has it",
    "en/reports/uplot/LICENSE": "its licence, MIT",
    "en/reports/uplot/package.json": "its version",
    "docs": "how each thing is done, and what was measured",
    "scripts": "everything else that is run",
    "tests": "real images, real processes; literal.py is the oracle, kill_loop.py kills",
    "pyproject.toml": "the package, its extras and commands; the settings of every tool",
}


# ---- docs/configuration.md ----


def configuration() -> str:
    """Every key of a configuration, from the schema, the normalizers and the tasks."""
    from en.config.schema import Config
    from en.norm import NORMALIZERS
    from en.tasks import TASKS

    lines = section("The run", Config, "", nested=False)
    for name, field in Config.model_fields.items():
        for kind in kinds(field.annotation):
            if name not in ("norm", "task"):
                lines += section(f"`{name}`", kind, f"{name}.")
    lines += ["", "## `norm`", "", f"`norm.name`, and the chosen normalizer's own options. {of_all('norm.name')}"]
    for name, normalizer in NORMALIZERS.items():
        lines += ["", f"### `norm.name: {name}`", "", summary(normalizer), "", *options_of(name, normalizer)]
    lines += [
        "",
        "## `task`",
        "",
        f"`task.name`, and the chosen task's own fields. The former: {of_all('task.name')}",
    ]
    for name, task in TASKS.items():
        lines += section(f"`task.name: {name}`", task, "task.", level=3, said=summary(task))
    return "\n".join(lines) + "\n"


def section(title: str, keys: type[Any], prefix: str, nested: bool = True, level: int = 2, said: str = "") -> list[str]:
    """A heading, and a table of the keys of a section; then its sections, if they are to be shown below it.

    Args:
        prefix: of its keys in a dotted key.
    """
    schema = keys.model_json_schema()
    rows, below, words = [], [], comments(keys)
    for name, field in keys.model_fields.items():
        inner = kinds(field.annotation)
        if inner and nested:
            below += section(f"{title[:-1]}.{name}`", inner[0], f"{prefix}{name}.", level=level + 1)
        if not inner and name != "task" and not (name == "name" and level > 2):
            default = "required" if field.is_required() else f"`{value(field.get_default())}`"
            spec = allowed(schema["properties"][name])
            rows.append([f"`{name}`", spec, default, *means(prefix + name), words.get(name, "")])
    text = ["", said] if said else []
    heads = ["key", "value", "default", "at a resume", "another recipe", ""]
    return ["", f"{'#' * level} {title}", *text, "", *table(heads, rows), *below]


def means(key: str) -> list[str]:
    """Says whether a resumed run may change a key, and whether another value of it makes another recipe."""
    from en.config.meaning import at_a_resume, in_recipe, meaning

    return [at_a_resume(meaning(key)), in_recipe(meaning(key))]


def of_all(key: str) -> str:
    """The same in a sentence."""
    changed, other = means(key)
    return f"At a resume: {changed}; another recipe: {other}."


def kinds(annotation: Any) -> list[type[Any]]:
    """The sections of keys that a field may hold."""
    from en.config.section import Section

    parts = [annotation, *getattr(annotation, "__args__", ())]
    return [part for part in parts if isinstance(part, type) and issubclass(part, Section)]


def allowed(spec: dict[str, Any]) -> str:
    """The type and limits of a value, from its JSON schema, in words."""
    if "anyOf" in spec:
        return " or ".join(allowed(part) for part in spec["anyOf"])
    if "enum" in spec or "const" in spec:
        return ", ".join(f"`{each}`" for each in spec.get("enum", [spec.get("const")]))
    if spec.get("type") == "array":
        low, high, each = spec.get("minItems"), spec.get("maxItems"), allowed(spec["items"])
        return f"list of {low} x {each}" if low == high and low else f"list of {each}"
    names = {"object": "keys and values", "boolean": "true, false", "null": "null", "string": "text"}
    kind = names.get(spec.get("type", ""), spec.get("type", "any"))
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {value(spec[key])}" for key, sign in signs.items() if key in spec]
    return " ".join([kind, ", ".join(limits)]).strip()


def comments(keys: type[Any]) -> dict[str, str]:
    """Reads what the source says behind each field of a class, and within a value of several lines."""
    source = textwrap.dedent(inspect.getsource(keys))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    (body,) = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(said[line] for line in lines if line in said)
    return found


def options_of(name: str, normalizer: type[Any]) -> list[str]:
    """A table of the constructor arguments of a normalizer."""
    from en.norm import norm_options

    words = arguments(normalizer)
    rows = [[f"`{key}`", f"`{value(option.default)}`", words[key]] for key, option in norm_options(name).items()]
    return table(["key", "default", ""], rows)


def arguments(kind: type[Any]) -> dict[str, str]:
    """Reads what the docstrings of a class, and before it of those that it extends, say of constructor arguments."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(each).get("__doc__") or "") if each.__module__.startswith("en.") else ""
        block = re.search(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
        pairs = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", block[1], re.MULTILINE) if block else []
        for names, words in pairs:
            for name in names.split(", "):
                found.setdefault(name, as_yaml(" ".join(words.split()).removesuffix(".")))
    return found


def as_yaml(words: str) -> str:
    """Python's names of values, in words, as YAML has them."""
    for name, own in {"None": "null", "True": "true", "False": "false"}.items():
        words = re.sub(rf"\b{name}\b", own, words)
    return words


def value(default: object) -> str:
    """A default as YAML has it."""
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(value, default))}]"
    return f"{default:.6g}" if isinstance(default, float) else as_yaml(str(default))


def summary(kind: type[Any]) -> str:
    """The first paragraph of a docstring, in one line; formulas of a class are code."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())


def table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


# ---- docs/imagenet.md ----

TRAIN_IMAGES, MEASURED_IMAGES, MEASURED_SIDE, CORE_RATE, GPUS = 1_281_167, 256, 224, 1_220, 8
UNMEASURED = "not measured"


def measured_steps() -> dict[str, tuple[float, float]]:
    """ms of ResNet50's training step on an H100, in CUDA graphs and eager, by normalizer, as the log has them."""
    text = (ROOT / "docs" / "measurements.md").read_text()
    log = text.partition("## 2026-11-27: a GPU again\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \**([\w.]+)\** \| ([\d.]+) \(.*?\) \| [^|]+ \| ([\d.]+) \|", log, re.MULTILINE)
    return {"bn" if name == "nn.BatchNorm2d" else name: (float(graph), float(eager)) for name, eager, graph in rows}


def hours() -> list[str]:
    """A row for each recipe of ResNet50 whose step was measured, and for each other network."""
    from en.config.reading import load_config

    folder, steps = ROOT / "configs" / "imagenet", measured_steps()
    names = [f"resnet50_{norm}{form}" for form in ("", "_modern") for norm in steps]
    rows = [row_of(name, load_config(str(folder / f"{name}.yaml"), []), steps) for name in names]
    for name in ("shufflenet_v2_x0_5_en", "shufflenet_v2_x1_0_en"):
        rows.append(row_of(name, load_config(str(folder / f"{name}.yaml"), []), {}))
    heads = ["recipe", "epochs", "batch", "mean work of an image", "hours on 1 H100, at least", "at most",
             f"on {GPUS}, at least", "at most", "loader, core hours", "images/s a GPU takes", f"{GPUS} take",
             f"cores for {GPUS}"]  # fmt: skip
    return table(heads, rows)


def row_of(name: str, config: Any, steps: dict[str, tuple[float, float]]) -> list[str]:
    """A recipe's row: its work over 224 x 224 pixels, its hours, and what its loader has to give."""
    epochs, batch = config.train.epochs, config.train.batch_size
    sizes = [config.training_resolution.at(epoch) for epoch in range(epochs)]
    work = sum(height * width for height, width in sizes) / epochs / MEASURED_SIDE**2
    loading = f"{epochs * TRAIN_IMAGES / CORE_RATE / 3600:.0f}"
    cells = [f"`{name}`", str(epochs), str(batch), f"{work:.2f}"]
    if config.norm.name not in steps:
        return [*cells, *[UNMEASURED] * 4, loading, *[UNMEASURED] * 3]
    graph, eager = steps[config.norm.name]
    spans = []
    for gpus in (1, GPUS):
        part = work * batch / gpus / MEASURED_IMAGES  # of the measured step's work
        spans += [f"{ms * epochs * (TRAIN_IMAGES // batch) / 3.6e6:.1f}" for ms in (graph * part, eager * max(1, part))]
    rate = MEASURED_IMAGES / graph * 1000 / work
    return [*cells, *spans, loading, f"{rate:,.0f}", f"{GPUS * rate:,.0f}", f"{GPUS * rate / CORE_RATE:.0f}"]


# ---- docs/tree.md ----


def tree() -> str:
    """Every file of the project that a reader may look for, each with a line that its own head says of it."""
    lines = ["train.py eval.py".ljust(COLUMN) + "train; evaluate", *branch(ROOT / "scripts"), *branch(ROOT / "configs")]
    lines += [*branch(ROOT / "docs"), *branch(ROOT / "en"), leaf(ROOT / "tests", 0), leaf(ROOT / "tests" / "gpu", 1)]
    lines += branch(ROOT / "experiments")
    lines += [leaf(path, 0) for path in sorted(ROOT.glob("*.*")) if path.suffix in (".toml", ".txt")]
    return "\n".join(lines) + "\n"


def branch(folder: Path, depth: int = 0) -> Iterator[str]:
    """A folder, its files, and below them its folders."""
    yield leaf(folder, depth)
    paths = [path for path in folder.iterdir() if in_tree(path)]
    for path in sorted((path for path in paths if path.is_file()), key=lambda path: path.name):
        if not path.is_relative_to(ROOT / "configs"):
            yield leaf(path, depth + 1)
    order = {name: place for place, name in enumerate(ROOMS)}
    for path in sorted((path for path in paths if path.is_dir()), key=lambda path: (order.get(path.name, 99), path)):
        yield from branch(path, depth + 1)


def in_tree(path: Path) -> bool:
    """Tells whether the tree has a line for it."""
    return path.name[0] not in "._" and path.suffix not in (".typed", ".svg", ".css", ".js", ".j2")


def leaf(path: Path, depth: int) -> str:
    """A line of the tree."""
    name = "  " * depth + path.name + ("/" if path.is_dir() else "")
    words = WORDS.get(str(path.relative_to(ROOT))) or head(path)
    return f"{name:<{COLUMN - 1}} {shortened(words, WIDTH - max(COLUMN, len(name) + 1))}".rstrip()


def head(path: Path) -> str:
    """The first sentence of what a file or folder says of itself."""
    if path.is_dir():
        return head(path / "__init__.py")
    text = path.read_text()
    if path.suffix == ".py":
        return sentence(ast.get_docstring(ast.parse(text)) or "")
    if path.suffix == ".md":
        return re.sub("^# ", "", text.partition("\n")[0])
    paragraph = re.search(r"(?:^(?:#|//)(?!!) ?.*\n)+", text, re.MULTILINE)
    return sentence(re.sub(r"^(#|//) ?", "", paragraph[0], flags=re.MULTILINE) if paragraph else "")


def sentence(text: str) -> str:
    """The first sentence of a text, without its full stop."""
    words = " ".join(re.split(r"\n\s*\n", text)[0].split())
    return re.split(r"\.(?:\s|$)", words)[0]


def shortened(words: str, room: int) -> str:
    """Words that fit, cut where a clause ends, or a word."""
    for sign in (": ", "; ", ", ", " (", " "):
        while len(words) > room and sign in words:
            shorter = words[: words.rindex(sign)]
            if shorter.count("(") > shorter.count(")"):
                break
            words = shorter
    return words


# ---- docs/tour.md ----


def ran(session: str, names: dict[str, object]) -> str:
    """A session of the interpreter with what its statements print now."""
    pieces = doctest.DocTestParser().parse(session)
    return "".join(piece if isinstance(piece, str) else said_after(piece.source, names) for piece in pieces)


def said_after(source: str, names: dict[str, object]) -> str:
    """A statement as it is typed, and what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, "docs/tour.md", "single"), names)
    return ">>> " + "\n... ".join(source.splitlines()).replace("... \n", "...\n") + "\n" + said.getvalue()


# ---- docs/ratios.svg ----


def compact(svg: str) -> str:
    """matplotlib's SVG in fewer bytes: positions to a tenth of a point, and each style written once."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root, styles = ElementTree.fromstring(svg), dict[str, str]()
    for element in root.iter():
        for key in {"d", "x", "y", "transform", "width", "height", "viewBox"} & set(element.attrib):
            element.set(key, " ".join(re.sub(r"\d+\.\d+", to_a_tenth, element.get(key, "")).split()))
        if style := element.attrib.pop("style", ""):
            element.set("class", styles.setdefault(style, f"s{len(styles)}"))
    rules = ElementTree.SubElement(root, f"{{{SVG}}}style")
    rules.text = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")) + "\n"


def to_a_tenth(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def with_keys(page: str) -> str:
    """docs/configuration.md with its keys as they are now, below what is written by hand."""
    head, mark, _ = page.partition(MARK)
    return head + mark + configuration()


def with_hours(page: str) -> str:
    """docs/imagenet.md with the hours of the recipes as they are now."""
    head, mark, _ = page.partition(MARK)
    return "\n".join([head + mark, *hours(), ""])


def with_tree(page: str) -> str:
    """docs/tree.md with the tree as it is now."""
    return FENCE.sub(lambda _: tree(), page)


def with_outputs(page: str) -> str:
    """docs/tour.md with its sessions run anew, one after another."""
    names: dict[str, object] = {"__name__": "tour"}
    return SESSION.sub(lambda session: ran(session[0], names), page)


def with_protocols(page: str) -> str:
    """The page with its second half, the fields of every protocol, written anew."""
    from en.tasks.protocols import PROTOCOLS

    head, mark, _ = page.partition(MARK)
    lines = [""]
    for name, forms in PROTOCOLS.items():
        for data, form in forms.items():
            fields = {key: "none" if value is None else value for key, value in form.rows().items()}
            lines += [f"### `{name}`" + ("" if data == "any" else f" of `{data}`"), ""]
            lines += ["| field | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in fields.items()), ""]
    return head + mark + "\n".join(lines)


PAGES = {
    "docs/configuration.md": with_keys,
    "docs/imagenet.md": with_hours,
    "docs/segmentation.md": with_protocols,
    "docs/tour.md": with_outputs,
    "docs/tree.md": with_tree,
}


def document() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", metavar="RUN", type=Path, help="a run whose ratios have been looked at")
    picture = parser.parse_args().picture
    if picture is not None:
        source = picture / "ratios" / "layers.svg"
        if not source.is_file():
            raise UserError(f"--picture {picture}: expected a run with ratios/layers.svg: see scripts/ratios.py")
        (ROOT / "docs" / "ratios.svg").write_text(compact(source.read_text()))
    for name, update in PAGES.items():
        path = ROOT / name
        path.write_text(update(path.read_text()))


if __name__ == "__main__":
    exit_on_error(document)
