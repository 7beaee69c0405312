"""JPEG files of every kind are decoded to their pixels, or refused for what they are: damaged only where they are."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import command, succeed
from conftest import jpeg
from jpeg_files import arithmetic, lossless, reframed
from PIL import Image
from readers import CROP, decoded, reading

from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop
from en.data.decoding import DamagedImage, UnsupportedImage, decode_image
from en.data.ffcv.file import BetonFile
from en.data.ffcv.tables import JPEG, RAW
from en.data.ffcv.writer import Encoded, write_beton
from en.data.jpeg_kind import unusual_kind
from en.errors import RunError

SIDE = 48
PIXELS = np.random.default_rng(0).integers(0, 255, (SIDE // 6, SIDE // 6, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
GREY = PIXELS[..., :1]
BASELINE = jpeg(PIXELS, quality=90)
INK = jpeg(PIXELS, "CMYK")
ADOBE_TRANSFORM = INK.find(b"Adobe") + 11


def ycck() -> bytes:
    return INK[:ADOBE_TRANSFORM] + b"\x02" + INK[ADOBE_TRANSFORM + 1 :]


DECODED: dict[str, tuple[Callable[[], bytes], int]] = {
    "baseline": (lambda: BASELINE, JPEG),
    "extended": (lambda: reframed(BASELINE, 0xC1), JPEG),
    "progressive": (lambda: jpeg(PIXELS, progressive=True), JPEG),
    "arithmetic": (lambda: arithmetic(PIXELS), JPEG),
    "arithmetic progressive": (lambda: arithmetic(PIXELS, progressive=True), JPEG),
    "rgb": (lambda: jpeg(PIXELS, keep_rgb=True), JPEG),
    "cmyk": (lambda: INK, RAW),
    "ycck": (ycck, RAW),
    "lossless": (lambda: lossless(PIXELS), RAW),
    "lossless grey": (lambda: lossless(GREY), RAW),
    "lossless cmyk": (lambda: lossless(np.dstack([PIXELS, GREY])), RAW),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "12 bits": (reframed(BASELINE, 0xC1, bits=12), "JPEG of 12 bits a sample"),
    "16 bits": (lossless(PIXELS.astype(int) * 257, bits=16), "lossless JPEG of 16 bits a sample"),
    "two components": (lossless(PIXELS[..., :2]), "lossless JPEG of 2 components"),
    "hierarchical": (reframed(BASELINE, 0xC5), "hierarchical JPEG"),
    "arithmetic lossless": (reframed(BASELINE, 0xCB), "arithmetic-coded lossless JPEG"),
    "ls": (reframed(BASELINE, 0xF7), "JPEG-LS file"),
    "late height": (
        reframed(BASELINE, height=0)[:-2] + b"\xff\xdc\0\x04\0\x30\xff\xd9",
        "JPEG of a height that follows its scan",
    ),
}


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        (root / split / "all").mkdir(parents=True)
        for name, content in files.items():
            (root / split / "all" / f"{name}.jpg").write_bytes(content)
    return root


def test_the_lossless_files_of_these_tests_hold_their_pixels_exactly_by_pillow():
    for pixels in (PIXELS, GREY):
        with Image.open(io.BytesIO(lossless(pixels))) as image:
            assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("kind", ["lossless", "lossless grey"])
def test_a_lossless_jpeg_is_decoded_to_its_exact_pixels_with_a_note(kind):
    picture = decode_image(DECODED[kind][0]())
    assert np.array_equal(np.asarray(picture.image), PIXELS if kind == "lossless" else GREY.repeat(3, 2))
    assert not picture.warning and not picture.jpeg and picture.note.startswith("lossless JPEG (")


def test_every_kind_that_pillow_decodes_is_prepared_and_shown_with_pillows_pixels_by_both_loaders(tmp_path):
    files = {name: make() for name, (make, _) in DECODED.items()}
    assert {unusual_kind(files[name]) for name in files if "arithmetic" in name} == {"arithmetic-coded JPEG"}
    folder = folder_of(tmp_path / "in", files)
    said = succeed("scripts/prepare_data.py", folder, tmp_path / "out").stdout
    assert said.count(": lossless JPEG (") == 2 * 3
    whole = Reading(Part(len(files), 1, 0, 1, 7), CROP, CentreCrop(1.0), 1, 60, False)
    roots = {"ffcv": tmp_path / "out", "folder": folder}
    shown = {
        kind: next(iter(LOADERS[kind](root, "val", whole).eval_epoch((SIDE, SIDE)))) for kind, root in roots.items()
    }
    modes = BetonFile(tmp_path / "out" / "val.beton")._modes.tolist()
    for number, name in enumerate(sorted(files, key="{}.jpg".format)):
        with Image.open(io.BytesIO(files[name])) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert modes[number] == DECODED[name][1], name
        assert all(np.array_equal(batch.images[number].numpy(), pixels) for batch in shown.values()), name


def test_kinds_that_nothing_here_decodes_are_refused_by_their_name_and_never_called_damaged(tmp_path):
    folder = folder_of(tmp_path / "in", {name: content for name, (content, _) in REFUSED.items()})
    done = command("scripts/prepare_data.py", folder, tmp_path / "out")
    assert done.returncode == 2 and "damaged" not in done.stderr
    for name, (content, kind) in REFUSED.items():
        assert f"{name}.jpg: {kind}, which Pillow does not decode" in done.stderr
        with pytest.raises(UnsupportedImage, match=kind):
            decode_image(content)
    loader = LOADERS["folder"](folder, "train", reading(len(REFUSED), workers=0))
    with pytest.raises(RunError, match=r"\.jpg: not supported: .*JPEG.*, which Pillow does not decode") as failure:
        next(iter(loader.train_epoch(0, (16, 16))))
    assert "damaged" not in str(failure.value)


@pytest.mark.parametrize("content", [content for content, _ in REFUSED.values()])
def test_the_ffcv_loader_names_the_kind_of_a_sample_that_nothing_here_decodes(tmp_path, content):
    path = tmp_path / "train.beton"
    write_beton(path, [Encoded(JPEG, SIDE, SIDE, content, 0)], at_most=1)
    refusal = str(decoded(BetonFile(path), 0, (0, 0, SIDE, SIDE), (8, 8)))
    assert f"sample 0 is of a kind that is not decoded, {unusual_kind(content)}: " in refusal
    assert "damaged" not in refusal


def test_damage_to_files_of_unusual_kinds_is_still_damage(tmp_path):
    for content in (lossless(PIXELS), arithmetic(PIXELS)):
        with pytest.raises(DamagedImage):
            decode_image(content[: len(content) // 2])
    for changed in (reframed(BASELINE, bits=9), reframed(BASELINE, components=2), reframed(BASELINE, height=0)):
        with pytest.raises(DamagedImage):
            decode_image(changed)
        assert unusual_kind(changed) == ""


def test_an_image_of_unknown_range_and_one_that_is_too_large_are_not_called_damaged_by_the_folder_loader(
    tmp_path, monkeypatch
):
    floats = io.BytesIO()
    Image.fromarray(np.zeros((SIDE, SIDE), np.float32)).save(floats, "TIFF")
    for content, limit, reason in ((floats.getvalue(), SIDE**2, "mode F"), (BASELINE, SIDE, "decompression bomb")):
        folder = folder_of(tmp_path / reason, {"image": content})
        loader = LOADERS["folder"](folder, "train", reading(1, workers=0))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(RunError, match=f"image.jpg: not supported: .*{reason}"):
            next(iter(loader.train_epoch(0, (16, 16))))
