"""The folder that preparation writes: the whole data set or nothing, whenever it is killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import CLASSES, PER_CLASS, ended, jpeg
from readers import reading

from en.commands.prepare import main
from en.data import LOADERS
from en.data.ffcv.file import BetonFile
from en.data.preparation.out_folder import files_of
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import SPLITS, Sample, Source, read_source
from en.errors import UserError

TRAIN = PER_CLASS["train"] * CLASSES
HELD = files_of(SPLITS)


def endless(tmp_path: Path) -> Source:
    """A source that takes longer to prepare than a test waits."""
    large = tmp_path / "large.jpg"
    large.write_bytes(jpeg(np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)))
    samples = [Sample(str(large), large, 0)] * 20_000
    return Source("endless", ["noise"], {"train": samples, "val": samples})


def workers_of(child: int, out: Path, said: pytest.CaptureFixture[str]) -> list[psutil.Process]:
    """Waits until a preparation writes; returns its workers."""
    partial = out / "train.beton.partial"
    while not (partial.exists() and partial.stat().st_size > 0):
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            pytest.fail(f"the preparation ended with {ended(child)}: {said.readouterr()}")
        time.sleep(0.02)
    return psutil.Process(child).children()


def have_ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_a_killed_preparation_leaves_no_workers_and_nothing_that_opens(tmp_path, folders, capfd, forked):
    source, out = endless(tmp_path), tmp_path / "out"
    child = forked(lambda: prepare(source, out, Storage("raw"), 2, False))
    workers = workers_of(child, out, capfd)
    with pytest.raises(UserError, match="another preparation"):
        prepare(read_source(str(folders)), out, Storage(), 1, False)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert len(workers) == 2 and have_ended(workers)
    with pytest.raises(UserError, match="expected"):
        LOADERS["ffcv"](out, "train", reading())
    prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert sorted(path.name for path in out.iterdir()) == sorted(HELD)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_preparation_ends_in_one_line_and_leaves_what_it_goes_on_from(
    tmp_path, monkeypatch, capfd, number, code, forked
):
    source, out = endless(tmp_path), tmp_path / "out"
    names = [f"{number}.jpg" for number in range(5_000)]
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / "large.jpg")
    rows = [f"{split} {name} noise\n" for split in source.splits for name in names]
    (tmp_path / "list.txt").write_text("".join(rows))
    monkeypatch.setattr("sys.argv", ["prepare_data.py", str(tmp_path / "list.txt"), str(out), "--workers", "2"])
    child = forked(main)
    workers = workers_of(child, out, capfd)
    for process in (*workers, psutil.Process(child)) if number == signal.SIGINT else (psutil.Process(child),):
        process.send_signal(number)  # Ctrl-C goes to all
    assert ended(child) == code
    left = {"train.beton.partial", "train.journal"}
    assert have_ended(workers) and {path.name for path in out.iterdir()} == left
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_a_folder_that_holds_a_data_set_is_refused_without_overwrite(folders, untidy, tmp_path):
    out = tmp_path / "out"
    prepare(read_source(str(untidy)), out, Storage(), 1, False)
    before = {name: (out / name).read_bytes() for name in HELD}
    with pytest.raises(UserError, match=r"holds .*--overwrite"):
        prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert before == {name: (out / name).read_bytes() for name in HELD}
    counts = prepare(read_source(str(folders)), out, Storage(), 1, False, overwrite=True)
    assert counts["train"] == TRAIN == len(BetonFile(out / "train.beton"))


@pytest.mark.parametrize("renames", range(len(HELD)))
def test_a_kill_while_the_files_are_put_in_place_leaves_no_data_set_that_opens(
    folders, untidy, tmp_path, renames, monkeypatch, forked
):
    out = tmp_path / "out"
    prepare(read_source(str(untidy)), out, Storage(), 1, False)

    def die_after_some(number: list[int], replace: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def counted(source: Path, target: Path) -> Path:
            if number[0] == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            number[0] += 1
            return replace(source, target)

        return counted

    monkeypatch.setattr(Path, "replace", die_after_some([0], Path.replace))
    assert (
        ended(forked(lambda: prepare(read_source(str(folders)), out, Storage(), 1, False, overwrite=True)))
        == -signal.SIGKILL
    )
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"classes\.json"):
        LOADERS["ffcv"](out, "val", reading())
    prepare(read_source(str(folders)), out, Storage(), 1, False)
    assert len(BetonFile(out / "train.beton")) == TRAIN
