"""Which part of the package may import which: dependencies point one way."""

import ast
import sys
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
    ("benchmarks",),
    ("commands",),
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
COMMANDS = ("ablate", "prepare_data", "ratios", "report")
MODULES = sorted((ROOT / "en").rglob("*.py"))


def part_of(module: str) -> str:
    """The room of a dotted module below en: `norm` of en.norm.base."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"en.{name.name}" for name in node.names} if node.module == "en" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def imported_of_en(path: Path) -> set[str]:
    """Those of them that are the package's."""
    return {module for module in imported(path) if module.startswith("en.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_stands_below_it(path):
    own = path.relative_to(ROOT / "en").parts[0].removesuffix(".py")
    assert not {"experiments", "scripts", "tests"} & {module.partition(".")[0] for module in imported(path)}
    if own == "__init__":
        assert imported_of_en(path) == set()
        return
    assert own in GROUND or own in HEIGHT, f"en/{own}: expected one of {[*GROUND, *HEIGHT]}"
    for part in {part_of(module) for module in imported_of_en(path)} - {own}:
        if own in GROUND:
            assert part in GROUND, f"the ground imports en.{part}"
        elif own == "norm":
            pytest.fail(f"en.norm imports en.{part}: expected torch and the standard library only")
        else:
            assert part in GROUND or HEIGHT[part] < HEIGHT[own], f"en.{own} imports en.{part}"
            assert (own, part) not in NEVER, f"en.{own} imports en.{part}"


def test_the_normalizers_need_torch_and_the_standard_library_only():
    found = set().union(*map(imported, [ROOT / "en" / "__init__.py", *(ROOT / "en" / "norm").rglob("*.py")]))
    names = {module.partition(".")[0] for module in found}
    assert names - sys.stdlib_module_names == {"en", "torch", "triton"}  # triton, which torch brings for GPUs


@pytest.mark.parametrize("script", ["train.py", "eval.py", *(f"scripts/{name}.py" for name in COMMANDS)])
def test_a_commands_script_holds_no_code_of_its_own(script):
    code = ast.parse((ROOT / script).read_text()).body
    kinds = (ast.Import, ast.ImportFrom, ast.Expr, ast.If)
    assert all(isinstance(node, kinds) for node in code) and ast.unparse(code[-1]).endswith(":\n    main()")
    assert any(isinstance(node, ast.ImportFrom) and (node.module or "").startswith("en.commands.") for node in code)


def test_the_loop_names_no_task_no_loader_and_no_normalizer():
    from en.data import LOADERS
    from en.norm import NORMALIZERS
    from en.tasks import TASKS

    trees = [ast.parse((ROOT / "en" / "training" / name).read_text()) for name in ("epoch.py", "run.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not words & {*LOADERS, *NORMALIZERS, *TASKS}
