"""Which part of the package may import which: dependencies point one way."""

import ast
import sys
from pathlib import Path

import pytest
from commands import ROOT

GROUND = ("errors", "progress", "durable", "machine", "means", "size", "text_file", "threads")
LAYERS = (  # from the ground up: each may import itself, what stands before it, and GROUND
    ("native",),
    ("norm",),
    ("models", "data", "distributed"),
    ("tasks",),
    ("config",),
    ("runs",),
    ("build",),
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
IN_DATA = {  # what a part of en.data does not import of the others
    "sources": ("ffcv", "folder", "loader", "preparation"),
    "targets": ("ffcv", "folder", "loader", "preparation", "sources"),
    "crops": ("ffcv", "folder", "loader", "preparation", "sources", "targets"),
    "views": ("crops", "ffcv", "folder", "loader", "preparation", "sources", "targets"),
    "labels": ("ffcv", "folder", "preparation", "sources"),
    "loader": ("ffcv", "folder", "preparation", "sources"),
    "ffcv": ("folder", "foreign", "preparation"),
    "folder": ("ffcv", "preparation"),
    "preparation": ("folder", "foreign", "loader"),
}
WORDS = {  # names that had several meanings, and where the one is that is left: see CONTRIBUTING.md
    "Ratios": "en/runs/ratios.py",
    "Row": "en/runs/row.py",
    "Run": "en/reports/runs.py",
    "shown": "en/errors.py",
}
LIFTABLE = ("native", "norm")  # both together can be taken out whole: neither imports GROUND
COMMANDS = ("ablate", "label_data", "prepare_data", "ratios", "report")
MODULES = sorted((ROOT / "en").rglob("*.py"))
FOLDERS = [path for path in MODULES if path.name == "__init__.py"]


def part_of(module: str) -> str:
    """The room of a dotted module below en: `norm` of en.norm.base."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            own = {f"en.{name.name}" for name in node.names if name.name != "__version__"}
            found |= own if node.module == "en" else {node.module}
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
        elif own in LIFTABLE:
            assert (own, part) == ("norm", "native"), f"en.{own} imports en.{part}: expected LIFTABLE below it alone"
        else:
            assert part in GROUND or HEIGHT[part] < HEIGHT[own], f"en.{own} imports en.{part}"
            assert (own, part) not in NEVER, f"en.{own} imports en.{part}"


@pytest.mark.parametrize("part", IN_DATA)
def test_a_part_of_the_data_knows_none_that_stands_above_it(part):
    place = ROOT / "en" / "data" / part
    files = [*place.rglob("*.py")] if place.is_dir() else [place.with_suffix(".py")]
    found = {module.split(".")[2] for path in files for module in imported_of_en(path) if module.count(".") > 1}
    assert not found & {*IN_DATA[part]} and files


def test_the_normalizers_need_torch_and_the_standard_library_only():
    files = [path for part in LIFTABLE for path in (ROOT / "en" / part).rglob("*.py")]
    found = set().union(*map(imported, [ROOT / "en" / "__init__.py", *files]))
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

    files = sorted((ROOT / "en" / "training").glob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not words & {*LOADERS, *NORMALIZERS, *TASKS}
    kinds = [*NORMALIZERS.values(), *TASKS.values()]
    names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & {"record_ratios", *(kind.__name__ for kind in kinds)}
    modules = {kind.__module__ for kind in kinds} | {"en.norm.ratios", "en.data.folder", "en.data.ffcv.loader"}
    assert not modules & set().union(*map(imported, files))


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_what_it_is_and_re_exports_but_holds_no_code(path):
    for node in ast.parse(path.read_text()).body:
        assigned = [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []
        assert (
            isinstance(node, ast.ImportFrom)
            or assigned in (["__all__"], ["__version__"])
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ), f"{path}:{node.lineno}: expected a file of its own"


def defined(path: Path) -> set[str]:
    """The names of classes, functions, their arguments and aliases in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("word", WORDS)
def test_a_word_has_one_meaning(word):
    code = [path for part in ("en", "experiments", "scripts") for path in sorted((ROOT / part).rglob("*.py"))]
    assert [str(path.relative_to(ROOT)) for path in code if word in defined(path)] == [WORDS[word]]
