"""The package as it is installed: a wheel in a folder of its own, used by processes that do not see the source tree."""

import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from commands import HIDING, ROOT, environment_of

from en import __version__
from en.norm import kernels

SMOKE = """
import sys
from pathlib import Path

import torch
from torch import nn

from en.norm import NORMALIZERS, ExemplarNorm2d, kernels, record_ratios, replace_norm

assert Path(sys.modules["en"].__file__).is_relative_to(sys.argv[1])
for name in NORMALIZERS:
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2)), name)
    with record_ratios(model) as ratios:
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()), name
    assert isinstance(model[1], ExemplarNorm2d) == bool(ratios)
print(kernels.native_parts())
parts = [name for name in sys.modules if name.partition(".")[0] == "en"]
others = [name for name in parts if not name.startswith(("en.norm", "en.native"))]
assert others == ["en"], others
"""
EXTRAS = {  # of each command
    "train recipe.yaml": "train",
    "eval run": "train",
    "prepare fashion-mnist out": "train",
    "labels out --rule pair --rate 0.2": "train",
    "ablate suite.yaml": "train",
    "ratios run": "train,report",
    "report run --out report": "train,report",
}
COMMANDS = {f"en-{line.split()[0]}" for line in EXTRAS}
REFUSED = f"""
import importlib, sys

for line in {list(EXTRAS)}:
    sys.argv = line.split()
    try:
        importlib.import_module(f"en.commands.{{sys.argv[0]}}").main()
    except SystemExit as end:
        assert end.code == 2, line
"""
OTHERS = ("torchvision timm yaml pydantic tensorboard torchmetrics rich numpy PIL "
          "ffcv cv2 numba matplotlib scipy pyarrow jinja2")  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the wheel, and nothing else."""
    tree, wheels, site = (tmp_path_factory.mktemp(name) for name in ("tree", "wheels", "site"))
    for name in ("en", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, tree], check=True)
    (wheel,) = wheels.glob("exemplar_norm-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", site, wheel], check=True)
    return site


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the path of a process, hides what the package's extras bring."""
    folder = tmp_path_factory.mktemp("hiding")
    (folder / "sitecustomize.py").write_text(HIDING.format(hidden=set(OTHERS.split())))
    return folder


def run(line: list[object], path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a process that finds modules along `path` before those of the environment."""
    env = environment_of(PYTHONPATH=path)
    return subprocess.run([*map(str, line)], capture_output=True, text=True, env=env, cwd=cwd, timeout=120, check=False)


def test_the_wheel_needs_torch_alone_for_the_normalizers_and_has_their_cpp(site, torch_alone, tmp_path):
    done = run([sys.executable, "-W", "error::RuntimeWarning", "-c", SMOKE, site], f"{torch_alone}:{site}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kernels.native_parts()


def test_the_wheel_has_the_name_the_extras_and_every_file_of_the_package(site):
    installed = Distribution.at(next(site.glob("*.dist-info")))
    assert (installed.metadata["Name"], installed.version) == ("exemplar-norm", __version__)
    needed = [line for line in installed.requires or [] if "extra ==" not in line]
    assert len(needed) == 1 and needed[0].startswith("torch>=")
    extras = {"train", "imagenet", "ffcv", "report", "dev", "docs"}
    assert set(installed.metadata.get_all("Provides-Extra") or []) == extras
    present = [path.relative_to(ROOT) for path in (ROOT / "en").rglob("*") if path.is_file()]
    files = {path for path in present if path.suffix not in (".md", ".pyc") and path.name[0] != "."}
    assert len(files) > 100 and {name for name in files if not (site / name).is_file()} == set()
    assert not (site / "experiments").exists()


def test_every_command_is_installed_and_explains_itself(site, tmp_path):
    points = {point.name: point for point in Distribution.at(next(site.glob("*.dist-info"))).entry_points}
    assert set(points) == COMMANDS == {path.name for path in (site / "bin").iterdir()}
    for name in COMMANDS:
        done = run([sys.executable, site / "bin" / name, "--help"], str(site), tmp_path)
        assert done.returncode == 0 and f"{name} " in done.stdout, done.stderr


def test_a_command_whose_packages_are_missing_names_the_extras_in_one_line(site, torch_alone, tmp_path):
    done = run([sys.executable, "-c", REFUSED], f"{torch_alone}:{site}", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, extras in zip(lines, EXTRAS.values(), strict=True):
        missing, _, wanted = line.partition(": not installed: ")
        assert missing.removeprefix("error: ").partition(".")[0] in OTHERS.split()
        assert wanted == f"expected exemplar-norm[{extras}] (in its source tree: pip install '.[{extras}]')"
    assert "Traceback" not in done.stderr


def test_training_is_launched_by_torchrun_without_the_source_tree(site, tmp_path):
    shutil.copy(ROOT / "configs" / "quickstart" / "fashion_mnist.yaml", tmp_path / "recipe.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = run([*torchrun, site / "bin" / "en-train", "recipe.yaml", "--print-config"], str(site), tmp_path)
    assert done.returncode == 0 and "timm/resnet10t" in done.stdout, done.stderr
