"""Progressive JPEG files are judged by reading all their codes: whole ones accepted, damaged ones named."""

import io
import random

import numpy as np
import pytest
from conftest import jpeg as encode
from jpeg_files import FACTORS, damage, fault, segment
from PIL import Image
from progressive_files import SCRIPTS, progressive

from en.data import decoding, jpeg
from en.data.ffcv.kernels import read_jpeg
from en.data.preparation.encode import transcode_padded
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Flat parts and noise, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return coarse[:height, :width] // 2 + rng.integers(0, 128, (height, width, 3), dtype=np.uint8)


def complaint(content: bytes) -> str:
    """Returns what is wrong with a file in our decoder's words; empty for a progressive one that is whole."""
    try:
        assert jpeg.transcode(content) is None
    except ValueError as error:
        return str(error)
    return ""


def of_pillow(seed: int) -> bytes:
    """A progressive file by Pillow, of any of its samplings, grey or RGB, with and without restart markers."""
    rng = np.random.default_rng(seed)
    restarts = [{}, {"restart_marker_blocks": int(rng.integers(1, 9))}, {"restart_marker_rows": 1}][seed % 3]
    options = {"quality": int(rng.integers(20, 100)), "progressive": True, **restarts}
    if seed % 4 == 0:
        return encode(noise(*rng.integers(1, 150, 2), seed), "L", **options)
    return encode(noise(*rng.integers(1, 150, 2), seed), subsampling=seed % 4 - 1, keep_rgb=seed % 8 == 1, **options)


@pytest.mark.parametrize("sampling", FACTORS)
def test_whole_files_of_any_sampling_scans_and_restarts_are_accepted_as_by_libjpeg(sampling):
    for sides in ((1, 1), (17, 16), (50, 41)):
        shown = {}
        for script, scans in SCRIPTS.items():
            for interval in (0, 1, 3):
                content = progressive(*sides, FACTORS[sampling], scans, np.random.default_rng(1), interval)
                assert complaint(content) == read_jpeg(content, *sides).complaint == "", (sides, script, interval)
                shown[script, interval] = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        for (script, interval), pixels in shown.items():  # the other script leaves bits out
            assert script == "apart" or np.array_equal(pixels, shown["spectral", 0]), (script, interval)


def test_whole_files_by_pillow_are_accepted():
    assert [seed for seed in range(60) if complaint(of_pillow(seed))] == []


def test_what_is_wrong_with_a_progressive_file_is_named():
    rng = np.random.default_rng(0)
    grey = progressive(40, 40, FACTORS["grey"], SCRIPTS["successive"], rng)
    whole = progressive(40, 40, FACTORS["4:2:0"], SCRIPTS["successive"], rng, interval=2)
    scans = [at + 10 for at in range(len(grey)) if grey[at : at + 5] == b"\xff\xda\0\x08\x01"]
    header = grey.index(b"\xff\xda")
    assert complaint(grey) == complaint(whole) == ""

    def first_bytes(scan: int, *symbols: int) -> bytes:
        return grey[: scans[scan]] + bytes(symbols) + grey[scans[scan] + len(symbols) :]

    wrong = {
        "a Huffman code that is not in its table": first_bytes(1, 0xFF, 0, 0xFF, 0),
        "a coefficient past the 64th of its block": first_bytes(1, *[0xF0] * 4),
        "an interval that does not end at its restart marker": whole.replace(b"\xff\xd1", b"\xff\xd6"),
        "data that ends too early": grey[: len(grey) // 2],
        "a scan that does not follow from those before it": grey.replace(b"\x01\0\1\x3f\x03", b"\x01\0\1\x3f\x04"),
        "a header that is malformed": grey.replace(b"\x01\0\1\x3f\x03", b"\x01\0\3\2\x03"),
        "a table that is malformed": grey[:header] + segment(0xC4, b"\0\3" + bytes(15) + b"\0\1\2") + grey[header:],
    }
    for reason, content in wrong.items():
        assert complaint(content) == reason
    late = first_bytes(2, 0x11, 0xFF, 0)  # a new coefficient of more than one bit
    assert complaint(late) == "a Huffman code that is not in its table"
    last = grey.rindex(b"\xff\xda") + 10
    blocks = grey[: scans[1]] + bytes([0xE0, 0, 0]) + grey[grey.index(b"\xff\xda", scans[1]) :]
    assert complaint(blocks) == "an interval that does not end at its restart marker"  # 16,384 blocks are to come
    assert "Corrupt" in read_jpeg(grey[:last] + bytes(40) + grey[last:], 40, 40).complaint
    assert complaint(grey[:last] + bytes(40) + grey[last:]) == "an interval that does not end at its restart marker"


def test_padding_of_a_progressive_file_that_libjpeg_reads_in_silence_is_none_of_its_damage():
    content = of_pillow(1)
    for padding in (b"\0", b"\0\0", b"\xaa" * 3):
        padded = content[:-2] + padding + content[-2:]
        assert fault(padded) == "" and transcode_padded(padded) is None
    with pytest.raises(ValueError, match="does not end at its restart marker"):
        transcode_padded(content[:-2] + b"\x12\x34" + content[-2:])


def is_refused(content: bytes) -> bool:
    """Tells whether decoding, then reading all codes, finds anything."""
    try:
        picture = decoding.decode_image(content)
        return bool(picture.warning or (picture.jpeg and transcode_padded(picture.jpeg)))
    except (decoding.UnusableImage, ValueError):
        return True


def test_damage_that_libjpeg_notices_is_noticed_without_its_warnings(monkeypatch):
    rng, scripts = random.Random(0), list(SCRIPTS.values())
    whole = [of_pillow(seed) for seed in range(1, 40)]
    whole += [
        progressive(50, 60, FACTORS[sampling], scripts[number % 3], np.random.default_rng(number), number % 4)
        for number, sampling in enumerate(FACTORS)
    ]
    damaged = [damage(content, rng) for content in whole for _ in range(25)]
    noticed = [content for content in damaged if fault(content)]
    monkeypatch.setattr(decoding, "HAS_LIBJPEG_WARNINGS", False)
    silent = sum(not fault(content) for content in noticed)
    assert len(noticed) > 800 and silent > 400  # Pillow's own word would not do
    assert sum(map(is_refused, noticed)) >= 0.99 * len(noticed)
    assert not any(map(is_refused, whole))


@pytest.mark.parametrize("kind", ["jpeg", "as-is", "reencode", "raw"])
@pytest.mark.parametrize("has_libjpeg", [True, False])
def test_preparation_says_the_same_of_a_progressive_file_with_and_without_ffcv(
    tmp_path, monkeypatch, capsys, kind, has_libjpeg
):
    monkeypatch.setattr(decoding, "HAS_LIBJPEG_WARNINGS", has_libjpeg)
    whole = of_pillow(1)
    middle = whole.rindex(b"\xff\xda") + 60
    damaged = whole[:middle] + whole[middle + 40 :]
    Image.open(io.BytesIO(damaged)).load()  # Pillow has nothing to say
    for split in ("train", "val"):
        folder = tmp_path / "in" / split / "a"
        folder.mkdir(parents=True)
        (folder / "damaged.jpg").write_bytes(damaged)
        (folder / "whole.jpg").write_bytes(whole)
    source = read_source(str(tmp_path / "in"))
    kept, skipped = (
        prepare(source, tmp_path / on_warning, Storage(kind), 1, False, on_warning) for on_warning in ("keep", "skip")
    )
    assert (kept["warnings"], kept["warnings_kept"], kept["train"]) == (2, 2, 2)
    assert (skipped["warnings"], skipped["skipped"], skipped["train"]) == (2, 2, 1)
    assert kept["as_they_are"] == skipped["as_they_are"] == (2 if kind in ("jpeg", "as-is") else 0)
    assert capsys.readouterr().out.count("damaged.jpg: ") == 4
