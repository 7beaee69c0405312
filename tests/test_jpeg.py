"""Our JPEG decoder and resizer: Pillow's pixels to the bit, whatever is cut out, and damage by its name."""

import io
import random
import shutil
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import psutil
import pytest
import torch
from conftest import jpeg as encode
from fuzz_seeds import write_seeds
from jpeg_files import FACTORS, damage, reframed, sampled, segment
from PIL import Image

from en.data import jpeg
from en.data.crops import RandomResizedCrop
from en.data.preparation.encode import transcode_padded
from en.native.cache import ALONE


@pytest.fixture(params=["avx2", "portable", "pillow"])
def way(request, monkeypatch) -> Iterator[str]:
    """Which code decodes; on other processors than x86-64 the first two are the same."""
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "library_or_none", lambda: None)
        yield request.param
        return
    library = jpeg.library_or_none()
    assert library is not None, "these tests need g++"
    library.en_jpeg_vectors(request.param == "avx2")
    yield request.param
    library.en_jpeg_vectors(True)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Waves, edges and noise, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 7 + y / 11), 127 + 90 * np.cos(x / 5 - y / 3), 255 * ((x // 5 + y // 4) % 2)]
    return (np.stack(waves, -1) + rng.normal(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)


def stored(contents: list[bytes | np.ndarray], sides: list[tuple[int, int]]) -> tuple[jpeg.Images, list[np.ndarray]]:
    """Files, or pixels, as they lie in memory; and what keeps them there."""
    kept = [np.frombuffer(bytes(one), np.uint8) for one in contents]
    heights, widths = np.array(sides).T
    raw = np.array([isinstance(one, np.ndarray) for one in contents])
    lengths = np.array([len(one) for one in kept])
    return jpeg.Images(np.array([one.ctypes.data for one in kept], np.uint64), lengths, heights, widths, raw), kept


def shown(contents: list[bytes | np.ndarray], sides: list[tuple[int, int]], views: jpeg.Views) -> np.ndarray:
    """Decodes images without damage."""
    images, _kept = stored(contents, sides)
    out = torch.zeros((len(contents), *views.size, 3), dtype=torch.uint8)
    assert jpeg.decode(images, views, out) == {}
    return out.numpy()


def cut(content: bytes, box: tuple[int, ...], size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """Pillow's pixels of a box."""
    top, left, height, width = box
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop((left, top, left + width, top + height))
    if int(PIL.__version__.partition(".")[0]) >= 13:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    else:
        image = jpeg.show(image, [0, 0, height, width], list(size), [0, 0], size)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if flip else pixels


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


def differing(content: bytes, sides: tuple[int, int], rng: np.random.Generator, boxes: int = 6) -> int:
    """Values of random boxes, sizes and flips that are not Pillow's."""
    wrong = 0
    for _ in range(boxes):
        box, flip = random_box(*sides, rng), bool(rng.integers(2))
        size = int(rng.integers(1, 70)), int(rng.integers(1, 70))
        views = jpeg.crop_resize(np.array([box]), np.array([flip]), size)
        wrong += int((shown([content], [sides], views)[0] != cut(content, box, size, flip)).sum())
    return wrong


@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (3, 2), (8, 8), (5, 4), (16, 17), (33, 47), (120, 87)])
def test_any_part_of_what_pillow_writes_has_pillows_pixels(way, sides):
    rng, pixels = np.random.default_rng(sides), noise(*sides, 0)
    for number, quality in enumerate((1, 30, 75, 90, 96, 100)):
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "grey", "RGB"):
            options = {} if sampling in ("grey", "RGB") else {"subsampling": sampling}
            if number % 2:
                options["restart_marker_blocks"] = int(rng.integers(1, 9))
            content = encode(
                pixels, "L" if sampling == "grey" else "RGB", quality=quality, keep_rgb=sampling == "RGB", **options
            )
            assert differing(content, sides, rng, 2) == 0, (quality, sampling, options)


@pytest.mark.parametrize("sampling", FACTORS)
def test_any_part_at_any_sampling_has_pillows_pixels(way, sampling):
    rng = np.random.default_rng(5)
    for height, width in ((1, 1), (2, 3), (4, 5), (7, 9), (17, 16), (31, 33), (50, 41)):
        for interval in (0, 1, 3):
            content = sampled(height, width, FACTORS[sampling], rng, interval)
            assert jpeg.header(content) in ((height, width, interval), (0, 0, 0))
            assert differing(content, (height, width), rng, 3) == 0, (height, width, interval)


def test_colours_are_guessed_as_libjpeg_guesses_them(way):
    rng = np.random.default_rng(0)
    letters = sampled(20, 20, FACTORS["4:4:4"], rng, ids=b"RGB")
    others = sampled(20, 20, FACTORS["4:4:4"], rng, ids=b"abc")
    jfif, ycc, rgb = (
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), *(segment(0xEE, b"Adobe\0\x64\0\0\0\0" + t) for t in (b"\1", b"\0"))
    )  # fmt: skip
    for content in (letters, others):
        for markers in (b"", jfif, ycc, rgb, jfif + rgb):
            marked = content[:2] + markers + content[2:]
            assert differing(marked, (20, 20), rng, 1) == 0, markers
        longer = content[:2] + jfif[:-1] + b"\0" * 4 + content[2:]  # of which libjpeg warns
        assert "3 extraneous bytes" in refusals(longer, (20, 20), (0, 0, 20, 20))[0]


def test_training_crops_of_many_images_in_one_call_have_pillows_pixels(way):
    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    sides = [(150, 200), (90, 61), (240, 130), (64, 64), (375, 500)]
    contents = [
        encode(noise(*side, number), quality=85 + 3 * number, subsampling=number % 3, optimize=number % 2 == 0)
        for number, side in enumerate(sides)
    ]
    heights, widths = np.array(sides).T
    for epoch in range(4):
        boxes, flips, size, _ = crop(1, epoch, np.arange(5), heights, widths, (64, 48 + 16 * epoch))
        views = jpeg.crop_resize(boxes, flips, size)
        found = shown(contents, sides, views)
        for row in range(5):
            assert np.array_equal(found[row], cut(contents[row], boxes[row].tolist(), views.size, bool(flips[row])))


def test_a_shorter_side_is_resized_and_the_centre_cut_as_pillow_does(way):
    sides = [(150, 200), (90, 61), (241, 130), (64, 64), (100, 391)]
    heights, widths = np.array(sides).T
    contents = [
        encode(noise(*side, 3), quality=90, subsampling=2, progressive=number % 2 == 1)
        for number, side in enumerate(sides)
    ]
    raw = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    views = jpeg.resize_crop(heights, widths, 72, (64, 70))
    files, pixels = shown(contents, sides, views), shown(raw, sides, views)
    assert np.array_equal(files, pixels)
    for row, (height, width) in enumerate(sides):
        longer = int(72 * max(height, width) / min(height, width))
        size = (72, longer) if height <= width else (longer, 72)
        whole = cut(contents[row], (0, 0, height, width), size)
        top, left = round((size[0] - 64) / 2), round((size[1] - 70) / 2)
        assert np.array_equal(files[row], whole[top : top + 64, left : left + 70])
    with pytest.raises(ValueError, match="size 64 x 73: expected at most 72 x 72"):
        jpeg.resize_crop(heights, widths, 72, (64, 73))


def test_pixels_in_memory_are_resized_as_pillow_does(way):
    rng = np.random.default_rng(0)
    for sides in ((1, 1), (3, 200), (200, 3), (90, 61), (640, 480)):
        pixels = noise(*sides, 1)
        for _ in range(8):
            box, size = random_box(*sides, rng), (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
            views = jpeg.crop_resize(np.array([box]), np.array([True]), size)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "BMP")
            assert np.array_equal(shown([pixels], [sides], views)[0], cut(buffer.getvalue(), box, size, True))


def test_a_thread_does_not_keep_the_memory_of_a_large_image():
    sides = 5000, 6000
    content = encode(np.full((*sides, 3), 90, np.uint8), quality=50, subsampling=0)  # its planes have 90 MB
    whole = jpeg.crop_resize(np.array([[0, 0, *sides]]), np.array([False]), (8, 8))
    process = psutil.Process()
    before = process.memory_info().rss
    shown([content], [sides], whole)
    assert process.memory_info().rss - before < 50e6


def test_a_file_of_another_kind_is_decoded_by_pillow():
    pixels, rng = noise(40, 50, 0), np.random.default_rng(0)
    progressive = encode(pixels, quality=90, progressive=True)
    cmyk = encode(pixels, "CMYK", quality=90)
    extended = reframed(encode(pixels, quality=90), 0xC1)
    for content in (progressive, cmyk, extended, progressive[:2] + b"\xff\xff" + progressive[3:]):
        assert differing(content, (40, 50), rng) == 0
    assert jpeg.transcode(progressive) is None and jpeg.transcode(cmyk) is None and jpeg.transcode(b"GIF89a") is None


def test_without_a_compiler_pillow_decodes_and_one_warning_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fresh = jpeg.library_or_none.__wrapped__
    assert fresh() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: Pillow decodes JPEG files, which is slower: there is no g++")


# ---- lossless transcoding ----


@pytest.mark.parametrize("padding", [b"\0", b"\0\0", b"\0" * 4, b"\xaa" * 3])
def test_padding_that_libjpeg_reads_in_silence_is_left_out(padding):
    content = encode(noise(50, 41, 1), quality=90)
    assert transcode_padded(content[:-2] + padding + content[-2:]) == jpeg.transcode(content)
    with pytest.raises(ValueError, match="does not end at its restart marker"):
        transcode_padded(content[:-2] + b"\x12\x34" + content[-2:])


@pytest.mark.parametrize("sampling", FACTORS)
def test_a_transcoded_file_has_the_same_pixels_and_markers_where_they_are_wanted(sampling):
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (17, 16), (50, 41)):
        content = sampled(height, width, FACTORS[sampling], rng, int(rng.integers(0, 4)))
        for interval in (0, 1, 4):
            written = jpeg.transcode(content, interval)
            across = -(-width // (8 * max(h for h, _ in FACTORS[sampling]))) if sampling != "grey" else -(-width // 8)
            assert written is not None and jpeg.header(written) == (height, width, interval or across)
            assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(one))) for one in (content, written)))
            assert jpeg.transcode(written, interval) == written


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"])
def test_fill_bytes_before_any_marker_are_no_damage(marker):
    content = encode(noise(50, 41, 0), quality=90)
    filled = content.replace(marker, b"\xff\xff" + marker, 1)
    assert jpeg.transcode(filled) == jpeg.transcode(content)


def test_a_transcoded_file_keeps_what_else_it_said():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(noise(64, 96, 0), quality=90, exif=exif, icc_profile=b"icc" * 50, comment=b"why", dpi=(72, 72))
    written = jpeg.transcode(content)
    assert written is not None and len(written) < len(content)
    before, after = (Image.open(io.BytesIO(one)).info for one in (content, written))
    assert before == after and {"exif", "icc_profile", "comment", "dpi", "jfif"} <= set(after)
    rgb = encode(noise(64, 96, 0), quality=90, keep_rgb=True)
    assert differing(jpeg.transcode(rgb), (64, 96), np.random.default_rng(0)) == 0


# ---- damage ----


def refusals(content: bytes, sides: tuple[int, int], box: tuple[int, int, int, int]) -> dict[int, str]:
    images, _kept = stored([content], [sides])
    views = jpeg.crop_resize(np.array([box]), np.array([False]), (8, 8))
    return jpeg.decode(images, views, torch.empty((1, 8, 8, 3), dtype=torch.uint8))


def test_what_is_wrong_with_a_file_is_named():
    whole = sampled(64, 64, FACTORS["4:4:4"], np.random.default_rng(0), interval=4)
    one = sampled(64, 64, FACTORS["4:4:4"], np.random.default_rng(0))
    box, scan = (0, 0, 64, 64), one.index(b"\xff\xda") + 14
    second = whole.index(b"\xff\xd1")
    wrong = {
        "a Huffman code that is not in its table": one[:scan] + b"\xff\0" * 40 + one[scan + 80 :],
        "an interval that does not end at its restart marker": whole[:second] + b"\xff\xd3" + whole[second + 2 :],
        "data that ends too early": whole[: len(whole) // 2],
        "a table that is malformed": whole.replace(b"\0" * 7 + b"\x10" + b"\0" * 8, b"\3" * 7 + b"\x10" + b"\0" * 8),
        "a header that is malformed": whole.replace(struct.pack(">HHB", 64, 64, 3), struct.pack(">HHB", 64, 64, 9)),
        "a JPEG of 64 x 64 pixels: expected 64 x 65": whole,
    }
    for reason, content in wrong.items():
        assert refusals(content, (64, 65) if "expected" in reason else (64, 64), box) == {0: reason}
    runs = sampled(8, 8, FACTORS["grey"], np.random.default_rng(3))
    start = runs.index(b"\xff\xda") + 10
    past = runs[:start] + bytes([0, *[0xF0] * 4, 0xF1, 0xFF, 0]) + b"\xff\xd9"
    assert refusals(past, (8, 8), (0, 0, 8, 8)) == {0: "a coefficient past the 64th of its block"}
    with pytest.raises(ValueError, match=r"damaged|past the 64th"):
        jpeg.transcode(past)


@pytest.mark.parametrize("box", [(0, 0, 0, 8), (-1, 0, 8, 8), (60, 0, 8, 8), (0, 1, 8, 64)])
def test_a_box_that_is_not_within_its_image_is_refused(way, box):
    content = encode(noise(64, 64, 0))
    with pytest.raises(ValueError, match=rf"box .*{box[3]}.*: expected top, left, height, width within 64 x 64"):
        refusals(content, (64, 64), box)


def test_an_output_of_another_form_is_refused():
    images, _kept = stored([encode(noise(64, 64, 0))], [(64, 64)])
    views = jpeg.crop_resize(np.array([[0, 0, 8, 8]]), np.array([False]), (8, 8))
    for out in (
        torch.empty(1, 8, 8, 3),
        torch.empty((1, 3, 8, 8), dtype=torch.uint8),
        torch.empty((2, 8, 8, 3)).byte(),
    ):
        with pytest.raises(ValueError, match=r"expected uint8, contiguous, \(1, 8, 8, 3\)"):
            jpeg.decode(images, views, out)


def test_one_damaged_image_leaves_its_batch_as_it_is(way):
    whole = encode(noise(64, 64, 0), quality=90, restart_marker_blocks=2)
    cut_off = whole[: len(whole) // 3]
    images, _kept = stored([whole, cut_off, whole], [(64, 64)] * 3)
    views = jpeg.crop_resize(np.array([[0, 0, 64, 64]] * 3), np.zeros(3, bool), (32, 32))
    out = torch.zeros((3, 32, 32, 3), dtype=torch.uint8)
    refused = jpeg.decode(images, views, out)
    assert list(refused) == [1] and ("ends too early" in refused[1] or "truncated" in refused[1])
    for row in (0, 2):
        assert np.array_equal(out[row].numpy(), cut(whole, (0, 0, 64, 64), (32, 32)))


def test_damage_is_noticed_or_harmless_and_the_same_on_both_paths():
    rng, library = random.Random(4), jpeg.library_or_none()
    whole = encode(noise(96, 96, 0), quality=80, restart_marker_blocks=4)
    noticed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is left to it
        for _ in range(300):
            content = damage(whole, rng)
            images, _kept = stored([content], [(96, 96)])
            views = jpeg.crop_resize(np.array([[0, 0, 96, 96]]), np.array([False]), (48, 48))
            found = []
            for vectors in (True, False):
                library.en_jpeg_vectors(vectors)
                out = torch.zeros((1, 48, 48, 3), dtype=torch.uint8)
                found.append((jpeg.decode(images, views, out), out))
            library.en_jpeg_vectors(True)
            assert found[0][0] == found[1][0]
            assert found[0][0] or torch.equal(found[0][1], found[1][1])
            noticed += bool(found[0][0])
    assert noticed > 150


def compiled_driver(place: Path, *options: str, compiler: str = "g++") -> Path:
    """The program of jpeg_fuzz.cpp."""
    driver = Path(__file__).with_name("jpeg_fuzz.cpp")
    command = [compiler, "-std=c++17", *options, f"-I{jpeg.SOURCE.parent}", str(driver), "-o", str(place)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return place


def test_damaged_files_neither_crash_nor_overrun_the_sanitizers_say(tmp_path):
    options = ["-O0", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = compiled_driver(tmp_path / "fuzz", *options)
    ended = subprocess.run([program, "1000", "1", *write_seeds(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = {int(status): int(times) for status, times in map(str.split, ended.stdout.splitlines()[:-1])}
    assert sum(counts.values()) == 1000 and min(counts.get(status, 0) for status in (0, 1, 4, 6, 7)) > 0


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64-static")),
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static)",
)
def test_another_processor_computes_the_same_pixels(tmp_path):
    """Its code is the portable one. No test of ALONE's -ffp-contract=off: without it no pixel here is another one,
    nor is one of 203 million weights of images 2,000 to 8,000 pixels wide, with AVX2 and FMA.
    """
    flags = ["-O3", "-ffp-contract=off"]
    assert set(flags) < set(ALONE)
    here = compiled_driver(tmp_path / "here", "-O1", "-march=native")
    there = compiled_driver(tmp_path / "there", *flags, "-static", compiler="aarch64-linux-gnu-g++")
    expected, found = (
        subprocess.run([*command, "4000", "1", *write_seeds(tmp_path)], check=True, capture_output=True, text=True)
        for command in ([here], ["qemu-aarch64-static", there])
    )
    assert found.stdout == expected.stdout and "digest" in found.stdout
