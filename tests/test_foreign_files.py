"""Files among the evaluation images that are none: named before a run, and taken away without ending it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import command, refused, succeed
from conftest import jpeg, write_folders
from PIL import Image
from readers import reading

from en.data import LOADERS
from en.data.foreign import fault_of
from en.errors import UserError
from en.runs import checkpoint

RECIPE = """
model: {name: timm/resnet10t, options: {channels: [8, 8, 8, 8], stem_width: 8}}
norm: {name: bn}
data: {root: unset, loader: folder, resolution: 32, workers: 0}
train: {epochs: 1, batch_size: 8}
optim: {lr: 0.01}
device: cpu
"""


@pytest.fixture(scope="module")
def begun(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, 2 x 4 of them in val, and a run of one epoch on them whose score none will reach."""
    folder = tmp_path_factory.mktemp("begun")
    write_folders(folder / "images", {"train": 4, "val": 2})
    succeed("train.py", recipe, f"data.root={folder / 'images'}", f"run_dir={folder / 'run'}")
    path = checkpoint.step_paths(folder / "run")[0]
    saved = checkpoint.load(path)
    assert saved.best is not None
    saved.best["score"] = 101.0
    checkpoint.save(saved, path)
    for name in ("last.pt", "best.pt"):
        checkpoint.link(path, folder / "run" / name)
    return folder


@pytest.fixture
def again(begun: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the images and the run."""
    shutil.copytree(begun, tmp_path / "again")
    return tmp_path / "again" / "images", tmp_path / "again" / "run"


def spoil(images: Path) -> dict[str, str]:
    """Puts files that are no images into val, and more of them than a line names. Returns: what is wrong with each."""
    first, *_, last = sorted((images / "val").iterdir())
    whole = (first / "000.jpg").read_bytes()
    (first / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    (first / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (first / "desktop.ini").write_text("[.ShellClassInfo]\r\n")
    (first / "empty.jpg").touch()
    (first / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(first / "pipe.jpg")
    for number in range(5):
        (last / f"{number}.txt").write_text("a list of the images")
    return {"Thumbs.db": "not an image", "cut.jpg": "", "desktop.ini": "not an image", "empty.jpg": "empty file",
            "gone.jpg": "cannot be read", "pipe.jpg": "not a file"}  # fmt: skip


def test_files_in_val_that_are_no_images_are_named_at_once_before_a_run_begins_or_a_network_is_scored(
    again, recipe, tmp_path
):
    images, run = again
    faults, new = spoil(images), tmp_path / "new"
    for line in (
        refused(command("train.py", recipe, f"data.root={images}", f"run_dir={new}")),
        refused(command("eval.py", run, f"data.root={images}")),
    ):
        assert f"{images / 'val'}: 11 of 19 files are not intact images: " in line and "; and 5 more: expected" in line
        assert all(f"/{name}: {fault}" in line for name, fault in faults.items())
    assert not new.exists()


def test_a_run_goes_on_with_fewer_evaluation_images_says_so_and_begins_its_best_anew(again, recipe):
    images, run = again
    best = checkpoint.load(run / "best.pt")
    assert best.best == {"score": 101.0, "epoch": 1} and best.data["val"]["samples"] == 8
    min((images / "val").rglob("*.jpg")).unlink()
    done = succeed("train.py", recipe, f"data.root={images}", "train.epochs=2", f"resume={run}")
    assert "resumes with evaluation images=7 (was 8)\n" in done.stderr and "best.pt begun anew" in done.stderr
    now = checkpoint.load(run / "best.pt")
    assert now.best is not None and now.best["epoch"] == 2 and now.best["score"] <= 100
    assert json.loads((run / "provenance.json").read_text())["starts"][1]["changed"]["evaluation images"] == [8, 7]
    assert [row["images"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())] == [8, 7]


@pytest.mark.parametrize("change", ["fewer for training", "more for evaluation", "others for evaluation"])
def test_a_run_does_not_go_on_with_other_images_in_any_other_way(again, recipe, change):
    images, run = again
    split = "train" if "training" in change else "val"
    first = min((images / split).rglob("*.jpg"))
    if "more" in change:
        shutil.copy(first, first.with_name("999.jpg"))
    else:
        first.rename(first.with_name("999.jpg"))
    if "fewer" in change:
        first.with_name("999.jpg").unlink()
    line = refused(command("train.py", recipe, f"data.root={images}", "train.epochs=2", f"resume={run}"))
    assert f"expected the {split} images that" in line


def test_intact_images_of_every_form_and_whatever_follows_their_end_are_no_foreign_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for form in ("png", "gif", "bmp", "webp", "tiff", "ppm"):
        Image.fromarray(pixels).save(tmp_path / f"whole.{form}")
    for after in (0, 500, 5000):
        (tmp_path / f"{after}.jpg").write_bytes(jpeg(pixels) + bytes(after))
    assert {path.name: fault_of(path) for path in tmp_path.iterdir() if fault_of(path)} == {}
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:30])
    assert sum(fault_of(path) != "" for path in tmp_path.iterdir()) >= 8  # a bitmap's head may be all of it


def test_ratios_of_training_images_are_not_kept_from_by_files_in_val(again):
    images, _ = again
    spoil(images)
    LOADERS["folder"](images, "train", reading(4, workers=0)).close()
    with pytest.raises(UserError, match="not intact images"):
        LOADERS["folder"](images, "val", reading(4, workers=0))
