"""Which part of the package may import which: dependencies point one way."""

import ast
from pathlib import Path

import pytest
from commands import ROOT

GROUND = ("errors", "progress", "durable", "machine")
LAYERS = (  # from the ground up: each may import itself, what stands before it, and GROUND
    ("norm",),
    ("models", "data", "distributed"),
    ("tasks",),
    ("config",),
    ("runs", "build"),
    ("evaluation",),
    ("training",),
    ("reports", "suites"),
    ("benchmarks", "diagnosis"),
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
NEVER = {
    ("reports", "training"),
    ("reports", "evaluation"),
    ("suites", "training"),
    ("suites", "evaluation"),
    ("models", "data"),
    ("data", "models"),
}
MODULES = sorted((ROOT / "en").rglob("*.py"))


def part_of(module: str) -> str:
    """The room of a dotted module below en: `norm` of en.norm.base."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"en.{name.name}" for name in node.names} if node.module == "en" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {module for module in found if module.startswith("en.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_stands_below_it(path):
    own = path.relative_to(ROOT / "en").parts[0].removesuffix(".py")
    if own == "__init__":
        assert imported(path) == set()
        return
    assert own in GROUND or own in HEIGHT, f"en/{own}: expected one of {[*GROUND, *HEIGHT]}"
    for part in {part_of(module) for module in imported(path)} - {own}:
        if own in GROUND:
            assert part in GROUND, f"the ground imports en.{part}"
        elif own == "norm":
            pytest.fail(f"en.norm imports en.{part}: expected torch and the standard library only")
        else:
            assert part in GROUND or HEIGHT[part] < HEIGHT[own], f"en.{own} imports en.{part}"
            assert (own, part) not in NEVER, f"en.{own} imports en.{part}"


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_an_entry_point_is_thin(script):
    assert len((ROOT / script).read_text().splitlines()) <= 40


def test_the_loop_names_no_task_no_loader_and_no_normalizer():
    from en.data import LOADERS
    from en.norm import NORMALIZERS
    from en.tasks import TASKS

    trees = [ast.parse((ROOT / "en" / "training" / name).read_text()) for name in ("epoch.py", "run.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not words & {*LOADERS, *NORMALIZERS, *TASKS}
