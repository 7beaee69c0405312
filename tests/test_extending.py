"""docs/extending.md followed to the letter, in a copy of the tree."""

import re
import shutil
import subprocess
import sys

import pytest
from commands import ROOT, environment_of

DOCUMENTED_AND_TESTED = """
import runpy, sys
import pytest
arguments, sys.argv[1:] = sys.argv[1:], []
runpy.run_path("scripts/document.py")["document"]()
sys.exit(pytest.main(arguments))
"""
IMPORTED_BEFORE = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # what pytest would have rewritten
LEFT_OUT = {".git", ".venv", "runs", "data", "build", "dist", "reference"}  # of the top: en/ has runs, data


def left_out(folder, names):
    """Lists what is not copied of a folder of the tree, for shutil.copytree."""
    generated = {name for name in names if name.endswith(("_cache", "__pycache__", ".egg-info"))}
    return generated | (LEFT_OUT & {*names} if folder == str(ROOT) else set())


def insert(path, before, *lines):
    """Puts lines before the first one that begins so."""
    text = path.read_text()
    assert f"\n{before}" in text, path
    path.write_text(text.replace(f"\n{before}", "".join(f"\n{line}" for line in lines) + f"\n{before}", 1))


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the tree with a normalizer and a task more, as the page says."""
    root = tmp_path_factory.mktemp("extended") / "en"
    shutil.copytree(ROOT, root, ignore=left_out)
    layer, literal = re.findall(r"^```python\n(.*?)^```$", (root / "docs/extending.md").read_text(), re.M | re.S)
    (root / "en/norm/larger.py").write_text(layer)
    registry = root / "en/norm/registry.py"
    insert(registry, "from en.norm.single", "from en.norm.larger import LargerNorm2d")
    insert(registry, '    "bn": BatchNorm2d', '    "larger": LargerNorm2d,')
    formula, _ = literal.split("\n\n\nFORMULAS")
    insert(root / "tests/literal.py", "FORMULAS", *formula.splitlines()[3:], "", "")
    insert(root / "tests/literal.py", '    "en": lambda', '    "larger": literal_larger,')
    shutil.copy(root / "tests/regression.py", root / "en/tasks/regression.py")
    tasks = root / "en/tasks/registry.py"
    insert(tasks, "from en.tasks.classification", "from en.tasks.regression import Regression")
    insert(tasks, '    "classification"', '    "regression": Regression,')
    return root


def run(root, *line):
    done = subprocess.run([sys.executable, *line], cwd=root, env=environment_of(PYTHONPATH=str(root)), text=True,
                          capture_output=True, timeout=400, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow(reason="another interpreter tests a copied tree")
def test_a_normalizer_and_a_task_that_were_added_as_the_page_says_pass_the_tests(copied):
    files = ["tests/test_norm.py", "tests/test_norm_forms.py", "tests/test_tasks.py", "tests/test_docs.py"]
    chosen = "(larger or regression or fresh or described or mixing) and not resume and not tour"  # that has just run
    passed = run(copied, "-c", DOCUMENTED_AND_TESTED, "-p", "no:cacheprovider", *IMPORTED_BEFORE, "-k", chosen, *files)
    assert int(re.search(r"(\d+) passed", passed)[1]) > 20
    assert "larger.py " in (copied / "docs" / "tree.md").read_text()
    assert "larger" in (copied / "docs/configuration.md").read_text()
