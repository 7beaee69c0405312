"""Damaged images in a data set: all are listed, and refused, skipped or kept."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from commands import command, succeed
from conftest import CLASSES, ended, jpeg, write_folders
from jpeg_files import damage, fault, whole_jpegs
from PIL import Image
from readers import epoch_pixels, reading

from en.data import LOADERS
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.errors import RunError, UserError

DAMAGE = {
    "empty.jpg": b"",
    "text.jpg": b"not an image at all",
    "truncated.jpg": "half",
    "overwritten.jpg": "noise",
    "list.txt": b"a.jpg 3\n",
    "truncated.png": "png",
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    root = write_folders(tmp_path / "damaged", {"train": 3, "val": 2})
    folder = sorted((root / "train").iterdir())[1]
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8), quality=95)
    for name, content in DAMAGE.items():
        if content == "half":
            content = whole[: len(whole) // 2]
        if content == "noise":
            middle = len(whole) // 2
            content = whole[:middle] + b"\xff\xd0\xff\xd9" * 8 + whole[middle + 32 :]
        if content == "png":
            Image.effect_noise((50, 50), 50).save(folder / name)
            content = (folder / name).read_bytes()[:900]
        (folder / name).write_bytes(content)
    return root


@pytest.mark.parametrize("storage", ["jpeg", "as-is", "reencode", "raw"])
def test_damaged_files_are_all_listed_and_nothing_is_written(damaged, tmp_path, storage):
    out = tmp_path / "out"
    done = command("scripts/prepare_data.py", damaged, out, "--storage", storage)
    assert done.returncode == 2 and f"{len(DAMAGE)} files" in done.stderr and "Traceback" not in done.stderr
    assert all(f"{name}: " in done.stderr for name in DAMAGE)
    assert not list(out.iterdir())


def test_skip_corrupt_skips_damaged_files_and_reports_how_many(damaged, tmp_path):
    done = succeed("scripts/prepare_data.py", damaged, tmp_path / "out", "--skip-corrupt")
    assert f"{len(DAMAGE)} skipped" in done.stdout
    loader = LOADERS["ffcv"](tmp_path / "out", "train", reading(4))
    assert loader.samples == 3 * CLASSES and len(epoch_pixels(loader, 0)) == 3 * CLASSES


def out_of_step() -> bytes:
    """A damaged JPEG file that Pillow accepts and libjpeg warns about only with extraneous bytes before its end."""
    rng = random.Random(3)
    for whole in whole_jpegs(5, 400):
        spoilt = damage(whole, rng)
        if "extraneous bytes before marker 0xd9" in fault(spoilt) and Image.open(io.BytesIO(spoilt)).mode == "RGB":
            return spoilt
    raise AssertionError("no such file")


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    """Eight training images: one makes libjpeg warn, one is padded."""
    root = write_folders(tmp_path / "warned", {"train": 2, "val": 1})
    first, second = sorted((root / "train").rglob("*.jpg"))[:2]
    first.write_bytes(out_of_step())
    content = second.read_bytes()
    second.write_bytes(content[:-2] + bytes(40) + content[-2:])
    return root


def test_a_warning_is_refused_skipped_or_kept_and_always_listed(warned, tmp_path, capsys):
    spoilt, padded = sorted((warned / "train").rglob("*.jpg"))[:2]
    with pytest.raises(UserError, match=rf"1 files are not[^\n]*\n  {spoilt}: Corrupt JPEG data"):
        prepare(read_source(str(warned)), tmp_path / "refuse", Storage(), 1, False)
    for choice, stored in (("skip", 7), ("keep", 8)):
        counts = prepare(read_source(str(warned)), tmp_path / choice, Storage(), 1, False, choice)
        told = {"skipped": 8 - stored, "warnings": 2, "warnings_kept": stored - 6, "in_both": 0, "as_they_are": 0}
        assert counts == {"train": stored, "val": 4} | told
        output = capsys.readouterr().out
        assert f"kept {padded}: 40 bytes of padding" in output
        assert f"{'skipped' if choice == 'skip' else 'kept'} {spoilt}: Corrupt JPEG data" in output
        loader = LOADERS["ffcv"](tmp_path / choice, "train", reading(stored))
        assert len(epoch_pixels(loader, 0)) == stored
        loader.close()


def test_the_folder_loader_refuses_what_preparation_refuses(warned):
    loader = LOADERS["folder"](warned, "train", reading(8, workers=0))
    with pytest.raises(RunError, match=r"damaged: Corrupt JPEG data"):
        epoch_pixels(loader, 0)


def test_without_ffcv_the_folder_loader_warns_once_that_it_cannot_see_libjpegs_warnings(warned, capfd, forked):
    def open_twice() -> None:
        import sys

        for name in ("en.data.decoding", "en.data.folder", "en.data.ffcv.kernels"):
            sys.modules.pop(name, None)
        sys.modules["en.data.ffcv.kernels"] = None  # as if ffcv were not installed
        from en.data.folder import FolderLoader

        for split in ("train", "val"):
            loader = FolderLoader(warned, split, reading(4, workers=0))
        assert len(list(loader.eval_epoch((16, 16)))) == 1

    assert ended(forked(open_twice)) == 0
    assert capfd.readouterr().err.count("warning: data.loader=folder without") == 1


def test_images_that_stand_in_train_and_in_val_are_counted_and_named_once(tmp_path):
    root = write_folders(tmp_path / "leaking", {"train": 3, "val": 3})
    first, second, *_ = sorted((root / "val").iterdir())
    twin = max((root / "train" / second.name).iterdir())
    for number in range(4):  # another class, and twice or more
        (first / f"a twin {number}.jpg").write_bytes(twin.read_bytes())
    for path in (root / "train" / first.name).iterdir():
        (first / f"own {path.name}").write_bytes(path.read_bytes())
    (first / "own cut.jpg").write_bytes(twin.read_bytes()[:200])
    done = succeed("scripts/prepare_data.py", root, tmp_path / "out", "--skip-corrupt")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert f"leaking: 7 of {3 * CLASSES + 7} images for evaluation are among those for training" in line
    assert f"{first / 'a twin 0.jpg'} is {twin}; " in line and line.endswith("; and 4 more") and line.count(" is ") == 3
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["in_both"] == 7
