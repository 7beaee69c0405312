"""What tests share: real images as class folders and .beton files, runs to compare with, and forks of this process."""

import fcntl
import gc
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import kill_loop
import norm_cases
import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import succeed
from kill_loop import Case, Place
from PIL import Image

from en.data import LOADERS
from en.data.sources import SPLITS
from en.data.sources.fashion_mnist import FASHION_MNIST_CLASSES, find_fashion_mnist, read_fashion_mnist
from en.errors import exit_on_error
from en.norm import kernels

collect_ignore = ["gpu"]  # runs by itself, where a GPU is: scripts/gpu_check.py

torch.set_num_threads(1)  # one process a core runs tests, and two that share theirs wait for each other

SLOW_S = 20  # a test above it says why: @pytest.mark.slow(reason="...")
seconds_of: dict[str, float] = {}  # set-up, call and end of each test, by its name
unexplained: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-to", metavar="FILE", help="write seconds and names of all tests, the slowest first")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    seconds_of[report.nodeid] = seconds_of.get(report.nodeid, 0.0) + report.duration
    if seconds_of[report.nodeid] > SLOW_S and "slow" not in report.keywords:
        unexplained.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Writes the durations, and names tests that are slow without saying why: a warning, as machines differ."""
    slowest = sorted(seconds_of.items(), key=lambda item: -item[1])
    if path := config.getoption("durations_to"):
        Path(path).write_text("".join(f"{seconds:.2f}\t{name}\n" for name, seconds in slowest))
    for name in sorted(unexplained):
        terminalreporter.line(f"above {SLOW_S} s without @pytest.mark.slow(reason=...): {name}", yellow=True)


GOOD = """
model: {name: resnet18}
norm: {name: en}
data: {root: images}
train: {epochs: 3, batch_size: 32}
optim: {lr: 1e-1}
"""
PER_CLASS = {"train": 24, "val": 5}
CLASSES = 4


def folder_name(label: int) -> str:
    return FASHION_MNIST_CLASSES[label].replace("/", "-")


def write_folders(root: Path, per_class: dict[str, int]) -> Path:
    """Class folders of the first images of CLASSES classes, scaled to sizes between 40 and 120 pixels, quality 90."""
    source = read_fashion_mnist(find_fashion_mnist())
    sizes = np.random.default_rng(0)
    for split in SPLITS:
        for label in range(CLASSES):
            folder = root / split / folder_name(label)
            folder.mkdir(parents=True)
            chosen = [sample for sample in source.splits[split] if sample.target == label][: per_class[split]]
            for number, sample in enumerate(chosen):
                width, height = sizes.integers(40, 120, 2).tolist()
                image = Image.fromarray(np.asarray(sample.image)).resize((width, height), Image.Resampling.BICUBIC)
                image = image if number % 2 else image.convert("RGB")
                image.save(folder / f"{number:03d}.jpg", quality=90)
    return root


@pytest.fixture(params=LOADERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder by its name, in the first of the test processes that asks for it, and returns its place."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent / "shared" if "PYTEST_XDIST_WORKER" in os.environ else own / "shared"
    root.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        place, made = root / name, root / f"{name}.made"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(place, ignore_errors=True)  # what one that failed has left
                make(place)
                made.touch()
        return place

    return make_once


@pytest.fixture(scope="session")
def folders(once: Once) -> Path:
    """root/{train,val}/CLASS/*.jpg: 96 training and 20 evaluation images of 4 classes."""
    return once("images", lambda place: write_folders(place / "clothes", PER_CLASS)) / "clothes"


@pytest.fixture(scope="session")
def betons(folders: Path, once: Once) -> Path:
    """The same images prepared by scripts/prepare_data.py, JPEG files without loss."""
    prepare = partial(succeed, "scripts/prepare_data.py", folders)
    return once("betons", lambda place: prepare(place / "clothes", "--workers", 2)) / "clothes"


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def chosen_form(request, monkeypatch):
    """Tests with a `form` run with whole layers as C++, with the four passes as C++, and without a compiler."""
    form = request.node.callspec.params.get("form") if hasattr(request.node, "callspec") else None
    if form is not None:
        monkeypatch.setenv(kernels.SWITCH, norm_cases.FORMS[form])
        assert kernels.native_parts() == form


@pytest.fixture(autouse=True)
def compiled_afresh() -> Iterator[None]:
    """Lets no test compile the less because others have compiled the same function for other layers."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def place(folders: Path, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(kill_loop.RECIPE)
    return Place(path, {"ffcv": betons, "folder": folders})


@pytest.fixture(scope="session")
def untouched(place: Place, once: Once):
    """The run of a case that nobody touched, made when first asked for."""

    def get(case: Case) -> Path:
        return once(f"untouched {case}", lambda run: kill_loop.run_untouched(place, case, run / "run")) / "run"

    return get


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    """Class folders with hidden files and linked folders among them."""
    root = write_folders(tmp_path / "untidy", {"train": 2, "val": 1})
    first = min((root / "train").iterdir())
    for folder in (".ipynb_checkpoints", "@eaDir"):
        (first / folder).mkdir()
        (first / folder / "000.jpg").write_text("not an image")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "more.jpg").write_bytes((first / "000.jpg").read_bytes())
    (first / "linked").symlink_to(elsewhere)
    return root


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Runs work in a fork of this process that ends like a command, and returns its process id."""
    children = []

    def fork(work: Callable[[], object]) -> int:
        gc.freeze()  # garbage such as an earlier test's process group joins threads that a fork lacks, and crashes it
        child = os.fork()
        if child:
            gc.unfreeze()
            children.append(child)
            return child
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        code = 1
        try:
            exit_on_error(lambda: work() and None)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    yield fork
    for child in children:  # what a failed test left running, with its children
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(count: int, function: Callable[..., object], before: bool) -> Callable[..., object]:
    """The function, which kills this process when it is called for the `count`th time, before it works or after."""
    calls = [0]

    def counted(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if before and calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


@pytest.fixture
def good(tmp_path: Path) -> str:
    """The file of a configuration in which everything is right."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a module's RECIPE."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(request.module.RECIPE)
    return path
