"""What preparation stores of intact images."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PER_CLASS, ended, jpeg
from PIL import Image
from readers import decoded, epoch_pixels, reading

from en.data import LOADERS
from en.data.ffcv.file import BetonFile
from en.data.ffcv.writer import Encoded
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.errors import RunError, UserError

TRAIN = PER_CLASS["train"] * CLASSES


def test_raw_storage_decodes_to_the_pixels_of_the_files(folders, tmp_path):
    prepare(read_source(str(folders)), tmp_path, Storage("raw"), 2, False)
    file = BetonFile(tmp_path / "val.beton")
    paths = [p for c in sorted((folders / "val").iterdir()) for p in sorted(c.iterdir())]
    for sample, path in enumerate(paths):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(decoded(file, sample, (3, 5, 20, 20), (20, 20)), pixels[3:23, 5:25])


@pytest.mark.parametrize(
    "storage", [Storage("reencode", 48, 95), Storage("raw", 48), Storage("reencode", None, 60)], ids=str
)
def test_scaled_and_reencoded_images_still_show_the_same(folders, tmp_path, storage):
    prepare(read_source(str(folders)), tmp_path, storage, 2, False)
    file = BetonFile(tmp_path / "train.beton")
    if storage.max_side:
        assert max(file.heights.max(), file.widths.max()) == storage.max_side
    name = LOADERS["ffcv"](tmp_path, "train", reading()).name
    assert ("quality" in name) == (storage.kind == "reencode") and ("side 48" in name) == (storage.max_side == 48)
    source = read_source(str(folders)).splits["train"]
    for sample in range(0, TRAIN, 10):
        original = np.asarray(
            Image.open(source[sample].image).convert("RGB").resize((24, 24), Image.Resampling.BOX), np.float32
        )
        box = (0, 0, int(file.heights[sample]), int(file.widths[sample]))
        assert np.abs(decoded(file, sample, box, (24, 24)) - original).mean() < 8


def test_the_same_source_gives_the_same_bytes_with_any_number_of_workers(folders, tmp_path):
    for workers in (1, 3):
        prepare(read_source(str(folders)), tmp_path / str(workers), Storage(), workers, False)
    for name in ("train.beton", "val.beton", "classes.json", "dataset.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def odd_images(root: Path) -> Path:
    """One class folder each of grey, CMYK, palette, transparent, 16-bit, one-pixel and progressive images."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for split in ("train", "val"):
        folder = root / split / "odd images"
        folder.mkdir(parents=True)
        (folder / "grey.jpg").write_bytes(jpeg(pixels, "L"))
        (folder / "cmyk.jpg").write_bytes(jpeg(pixels, "CMYK"))
        (folder / "progressive.JPEG").write_bytes(jpeg(pixels, progressive=True))
        (folder / "png under another name.jpg").write_bytes(b"")
        Image.fromarray(pixels).save(folder / "png under another name.jpg", "PNG")
        Image.fromarray(pixels).convert("P").save(folder / "palette.png")
        Image.fromarray(pixels).convert("RGBA").save(folder / "transparent.png")
        Image.fromarray(pixels[:1, :1]).save(folder / "pixel.png")
        (folder / ".hidden").write_text("not an image")
    return root


def test_grey_cmyk_and_other_images_become_rgb_in_both_loaders(tmp_path):
    folders = odd_images(tmp_path / "in")
    counts = prepare(read_source(str(folders)), tmp_path / "out", Storage(), 2, False)
    assert counts == {
        "train": 7,
        "val": 7,
        "skipped": 0,
        "warnings": 0,
        "warnings_kept": 0,
        "in_both": 7,
        "as_they_are": 2,
    }
    loaders = [LOADERS["ffcv"](tmp_path / "out", "val", reading(7)), LOADERS["folder"](folders, "val", reading(7))]
    mine, theirs = (next(iter(loader.eval_epoch((32, 32)))).images for loader in loaders)
    assert torch.equal(mine, theirs)


def test_neither_preparing_nor_loading_needs_the_package_ffcv(folders, betons, tmp_path, forked):
    expected = epoch_pixels(LOADERS["ffcv"](betons, "train", reading()), 0)

    def without() -> None:
        for name in [name for name in sys.modules if name.startswith("en.data")]:
            del sys.modules[name]
        sys.modules |= {"ffcv": None, "cv2": None}  # as if they were not installed
        from en.data import LOADERS as ANEW
        from en.data.decoding import HAS_LIBJPEG_WARNINGS
        from en.data.preparation.prepare import Storage, prepare
        from en.data.sources import read_source

        assert not HAS_LIBJPEG_WARNINGS
        prepare(read_source(str(folders)), tmp_path / "out", Storage(), 2, False)
        found = epoch_pixels(ANEW["ffcv"](tmp_path / "out", "train", reading()), 0)
        assert all(torch.equal(found[sample], pixels) for sample, pixels in expected.items())
        with pytest.raises(UserError, match=r"data\.decode=ffcv: expected the package ffcv"):
            ANEW["ffcv"](tmp_path / "out", "train", replace(reading(), decode="ffcv"))

    assert ended(forked(without)) == 0


def test_a_worker_that_dies_ends_preparation_in_one_line(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("en.data.preparation.pool.encode", die)
    from en.data.preparation import prepare as module

    with pytest.raises(RunError, match="worker process died"):
        module.prepare(read_source(str(folders)), tmp_path / "out", Storage(), 2, False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.beton.partial", "train.journal"}


def die(sample: object, **options: object) -> Encoded:
    os._exit(9)
