"""The site of scripts/docs.sh: README.md, the pages beside this file, and a reference of every room from docstrings."""

import ast
import importlib
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "en"
copyright = "the en authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "en/norm/kernels/*.md", "reference/*.rst"]
exclude_patterns = [".*", "build", "data", "findings", "runs", "tests"]
html_theme = "furo"
html_title = "en"
html_copy_source = False
html_show_sphinx = False
highlight_language = "none"  # of a block that names none
myst_heading_anchors = 6  # GitHub's
default_role = "code"  # of `words` in docstrings
napoleon_use_ivar = True
autodoc_use_type_comments = False
toc_object_entries = False
napoleon_attr_annotations = False

SECTION = re.compile(r"^(Raises|Returns|Yields): (.*(?:\n(?!(?:Raises|Returns|Yields): ).*)*)", re.MULTILINE)
CHAPTERS = {
    "Begin": ("docs/tour", "docs/your_script", "docs/warm_start", "docs/export", "docs/compatibility"),
    "Train": ("docs/configuration", "docs/data", "docs/loading", "docs/imagenet", "docs/segmentation",
              "docs/noisy_labels", "docs/transfer", "docs/robustness", "docs/runs"),
    "Measured": ("docs/results", "docs/measurements", "docs/small_maps", "en/norm/kernels/*"),
    "Extend": ("docs/extending", "docs/api", "docs/tree", "CONTRIBUTING", "CHANGELOG"),
    "Rooms": ("reference/*",),
}  # fmt: skip


def setup(app: Sphinx) -> None:
    app.add_lexer("tree", TextLexer)
    app.connect("builder-inited", write_reference)
    app.connect("builder-inited", import_all)
    app.connect("source-read", add_chapters)
    app.connect("autodoc-process-docstring", restructure, priority=100)  # before napoleon, whose markup is meant
    app.connect("doctree-read", lead_elsewhere, priority=100)  # before files are collected for download


def add_chapters(app: Sphinx, page: str, source: list[str]) -> None:
    """Gives the front page a table of contents that GitHub does not show."""
    if page == root_doc:
        for caption, pages in CHAPTERS.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


# ---- The reference ----


def write_reference(app: Sphinx) -> None:
    """Writes reference/en.rst, of the files that are in no room, and reference/en.ROOM.rst."""
    names = shared_names(modules_of_en())
    pages: dict[str, list[str]] = defaultdict(list)
    for module in sorted(names):
        room = ".".join(module.split(".")[:2])
        pages[room if (ROOT / room.replace(".", "/")).is_dir() else "en"].append(module)
    folder = ROOT / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for page, modules in pages.items():
        (folder / f"{page}.rst").write_text(reference_of(modules, names))


def reference_of(modules: list[str], names: dict[str, list[str]]) -> str:
    """Names the modules of a page, that of the room first, and what autodoc is to show of each."""
    sections: list[str] = []
    for module in modules:
        members = f"   :members: {', '.join(names[module])}\n" if names[module] else ""
        sections += [heading(module, "-" if sections else "="), f".. automodule:: {module}\n{members}"]
    return "\n".join(sections)


def heading(words: str, sign: str) -> str:
    return f"{words}\n{sign * len(words)}\n"


def modules_of_en() -> dict[str, ast.Module]:
    """Every module of en by its name."""
    paths = (ROOT / "en").rglob("*.py")
    return {module_name(path): ast.parse(path.read_text()) for path in paths}


def import_all(app: Sphinx) -> None:
    """Imports all that will be shown: once autodoc has shown one model, pydantic can make no further ones."""
    for name in modules_of_en():
        importlib.import_module(name)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def shared_names(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Collects what each module defines and another file uses, in the order of its definitions."""
    used: dict[str, set[str]] = defaultdict(set)
    others = (*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("experiments/**/*.py"))
    for tree in (*modules.values(), *(ast.parse(path.read_text()) for path in others)):
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                used[node.module] |= {name.name for name in node.names}
                aliases |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used[aliases.get(node.value.id, "")].add(node.attr)
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {
        module: [node.name for node in tree.body if isinstance(node, kinds) and node.name in used[module]]
        for module, tree in modules.items()
    }


def restructure(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Makes reStructuredText of a docstring, which is plain text with `code` and sections that may be one line."""
    paragraphs = "\n".join(lines).split("\n\n")
    for row, text in enumerate(paragraphs):
        if what == "module" and text.startswith("    "):
            paragraphs[row] = f"::\n\n{text}"  # a table, shown as it is
        else:
            text = SECTION.sub(as_field, text)
            paragraphs[row] = re.sub(r"`[^`]*`|[*|]|_\b", escaped, text)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def as_field(found: re.Match[str]) -> str:
    """A section of one paragraph as a field, whose further lines are indented."""
    return f"\n:{found[1]}: " + re.sub(r"\n *", "\n    ", found[2])


def escaped(found: re.Match[str]) -> str:
    return found[0] if found[0][0] == "`" else f"\\{found[0]}"


# ---- Links that leave the pages ----


def lead_elsewhere(app: Sphinx, tree: nodes.document) -> None:
    """Has links to modules and rooms lead to the reference, to other folders to the tree, and to packages nowhere.

    Links to other files are downloads.
    """
    here = (ROOT / app.env.docname).parent
    for link in list(tree.findall(addnodes.download_reference)):
        path = (here / link["reftarget"]).resolve()
        if path.suffix == ".py" and path.is_relative_to(ROOT / "en"):
            link.replace_self(reference(link, "py", "mod", module_name(path)))
    for link in list(tree.findall(addnodes.pending_xref)):
        path = (here / link["reftarget"]).resolve()
        if link["reftype"] == "myst" and path.is_dir():
            page = f"/reference/en.{path.name}" if path.parent == ROOT / "en" else "/docs/tree"
            link.replace_self(reference(link, "std", "doc", page))
        elif link.get("refdomain") == "py" and not link["reftarget"].startswith("en."):
            link.replace_self(link.children)


def reference(link: nodes.Element, domain: str, kind: str, target: str) -> addnodes.pending_xref:
    """A link with the words of another one."""
    new = addnodes.pending_xref("", *link.children, refdomain=domain, reftype=kind, reftarget=target, refexplicit=True)
    new.source, new.line = link.source, link.line
    return new
