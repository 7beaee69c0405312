"""Decoding image files that are intact, damaged or padded, and of every mode."""

import io
import random

import numpy as np
import pytest
from conftest import jpeg
from jpeg_files import damage, fault, whole_jpegs
from PIL import Image, PngImagePlugin

from en.data.decoding import UnsupportedImage, decode_image
from en.data.ffcv.kernels import decode_jpeg


def is_noticed(content: bytes) -> bool:
    """Whether Pillow refuses a JPEG file or FFCV's call of libjpeg returns an error or warning."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception:
        return True
    if image.mode == "CMYK":
        return False  # FFCV's call does not support it
    data, out = np.frombuffer(content, np.uint8), np.empty(3 * image.height * image.width, np.uint8)
    return decode_jpeg(data.ctypes.data, data.size, image.height, image.width, out) != 0


@pytest.mark.parametrize("seed", [0, 1])
def test_damage_that_libjpeg_or_pillow_notices_is_reported(seed):
    rng = random.Random(seed)
    noticed = [spoilt for whole in whole_jpegs(seed, 300) if is_noticed(spoilt := damage(whole, rng))]
    assert len(noticed) > 120
    assert sum(fault(content) != "" for content in noticed) >= 0.99 * len(noticed)


def test_intact_files_are_not_reported_whatever_follows_or_pads_their_end():
    noted = 0
    for number, content in enumerate(whole_jpegs(2, 200)):
        filler = (b"", b"\0" * 7, b"\0" * 100, b"\xff" * 5, b"\x20" * 30)[number % 5]
        padded = content[:-2] + filler + content[-2:] + (b"a thumbnail" if number % 3 else b"")
        assert fault(content) == "" and fault(padded) == "", filler
        noted += decode_image(padded).note != ""
    assert noted >= 80


def test_padding_after_a_decoder_that_stopped_too_early_does_not_count_as_padding():
    """If a changed byte lowers the height by 8, two bytes of the scan are left, about which libjpeg does not warn."""
    pixels = np.full((32, 16), 128, np.uint8)
    pixels[:24] = np.random.default_rng(0).integers(0, 255, (24, 16), dtype=np.uint8)
    whole = jpeg(pixels, "L", quality=50)
    at = whole.find(b"\xff\xc0") + 5
    assert whole[at : at + 2] == b"\x00\x20"
    for content, is_whole in ((whole, True), (whole[: at + 1] + b"\x18" + whole[at + 2 :], False)):
        assert not is_noticed(content)
        assert (fault(content[:-2] + bytes(40) + content[-2:]) == "") == is_whole


def test_every_mode_is_converted_faithfully_to_rgb_or_refused_by_name(tmp_path):
    ramp = np.linspace(0, 65_535, 256 * 4).reshape(16, 64)
    eight = np.rint(ramp / 257).astype(np.uint8)
    grey = Image.fromarray(eight)
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 0)))
    palette = Image.fromarray(eight).convert("P")
    palette.info["transparency"] = bytes(256)
    for name, image in {
        "16 bits.png": Image.fromarray(ramp.round().astype(np.uint16)),
        "16 bits.tiff": Image.fromarray(ramp.round().astype(np.uint16)),
        "clear.png": clear,
        "clear colours.png": clear.convert("RGBA"),
        "palette.png": palette,
    }.items():
        image.save(tmp_path / name)
        pixels = np.asarray(decode_image((tmp_path / name).read_bytes()).image).astype(int)
        assert pixels.shape == (16, 64, 3) and np.abs(pixels - eight[..., None]).max() <= 1, name
    for mode, values in (("F", ramp.astype(np.float32) / 65_535), ("I", ramp.astype(np.int32))):
        Image.fromarray(values).save(tmp_path / "wide.tiff")
        with pytest.raises(UnsupportedImage, match=f"mode {mode}"):
            decode_image((tmp_path / "wide.tiff").read_bytes())


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP", "after the pixels"])
def test_a_png_is_intact_however_much_stands_beside_its_pixels_and_a_wrong_checksum_there_is_still_found(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    plain, text, long = png(pixels), PngImagePlugin.PngInfo(), "prompt " * 300_000  # 2 MB
    if kind == "iCCP":
        content = png(pixels, icc_profile=long.encode())
    else:
        add = text.add_itxt if kind == "iTXt" else text.add_text
        for key in range(40 if kind == "tEXt" else 1):  # 84 MB of what is not compressed
            add(str(key), long, zip=kind != "tEXt")
        content = png(pixels, pnginfo=text)
    if kind == "after the pixels":
        start = content.find(b"zTXt") - 4
        chunk = content[start : content.find(b"IDAT") - 4]
        content = plain[:-12] + chunk + plain[-12:]
    assert np.array_equal(np.asarray(decode_image(content).image), pixels)
    spoilt = bytearray(content)
    spoilt[content.find(b"zTXt" if "after" in kind else kind.encode()) + 20] ^= 1
    assert fault(bytes(spoilt)) != ""


def test_a_png_with_a_wrong_checksum_and_a_decompression_bomb_are_reported(monkeypatch):
    buffer = io.BytesIO()
    Image.effect_noise((50, 50), 50).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[content.find(b"IDAT") + 1500] ^= 1
    assert fault(bytes(content)) != ""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in fault(buffer.getvalue())
