"""Gives the parts their options, and says where and how long each runs; see parts.py."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu.parts import PARTS
from gpu.results import Report, Setup

MARGIN_S = 3.0  # of its time that a part leaves for coming to an end


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parts of scripts/gpu_check.py")
    group.addoption("--device", choices=("cuda", "cpu"), default="cuda")
    group.addoption("--tiny", action="store_true", help="sizes that mean nothing, to try the parts out")
    group.addoption("--images", metavar="SOURCE", help="for accuracy: a folder with train/CLASS/, val/CLASS/")
    group.addoption("--rows", type=Path, metavar="FILE", help="for what is found, in lines of JSON")
    group.addoption("--ends", type=float, metavar="TIME", help="when all has to be done, in seconds of Unix time")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks every part: timed, its time limit, and what it lacks here."""
    parts = {part.test: part for part in PARTS.values()}
    gpu_missing = config.getoption("device") == "cuda" and not has_gpu()
    for item in items:
        part = parts.get(item.nodeid)
        item.add_marker(pytest.mark.timeout(seconds_of(item)))
        if part is not None and part.timed:
            item.add_marker(pytest.mark.timed)
        if part is not None and part.missing():
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(part.missing())}"))
        if gpu_missing:
            item.add_marker(pytest.mark.skip(reason="expected a GPU (--device cpu --tiny tries the parts out)"))


def seconds_of(item: pytest.Item) -> float:
    """Returns the seconds of a test: until the end that was given, or as long as its part."""
    ends = item.config.getoption("ends")
    if ends is not None:
        return max(0.1, float(ends) - time.time())
    return next((part.seconds for part in PARTS.values() if part.test == item.nodeid), 60.0)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> Setup:
    option = request.config.getoption
    ends = time.monotonic() + seconds_of(request.node) - MARGIN_S
    return Setup(option("device"), option("tiny"), option("images"), ends)


@pytest.fixture
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Report]:
    """Fails once the part has come to its end, if something in it failed."""
    made = Report(request.config.getoption("rows") or tmp_path / "rows.jsonl")
    yield made
    assert made.failures == []
