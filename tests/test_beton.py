"""A .beton file that is damaged or from a stranger can end the process that reads it in one line, and do no more."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import last_json, succeed
from conftest import jpeg
from PIL import Image
from readers import decoded

from en.data import LOADERS, Part, Reading
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.ffcv.file import BetonFile
from en.data.ffcv.tables import ALLOCATION, FIELD, HEADER, LARGEST_AREA, METADATA, SAMPLES, sealed
from en.data.ffcv.writer import Encoded, write_beton
from en.data.targets import Field, png_of
from en.errors import RunError, UserError

CROP = RandomResizedCrop((0.25, 1.0), (3 / 4, 4 / 3), 0.5)
READING = Reading(Part(4, 1, 0, 1, 0), CROP, CentreCrop(0.875), 1, 30, False)
HUGE = 2**64 - 8
Tables = dict[str, np.ndarray]


def pictures() -> list[Encoded]:
    """JPEG and raw images alternately, of 14 sizes; colour, grey and progressive."""
    random = np.random.default_rng(0)
    samples = []
    for label in range(14):
        height, width = (int(side) for side in random.integers(20, 90, 2))
        coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        content = pixels.tobytes() if label % 2 else jpeg(pixels, "L" if label == 4 else "RGB", progressive=label == 6)
        samples.append(Encoded(label % 2, width, height, content, label))
    return samples


@pytest.fixture(params=["sealed", "stock"])
def root(request, tmp_path: Path) -> Path:
    """val.beton as preparation writes it, or as stock FFCV does, without a seal."""
    folder = tmp_path / request.param
    folder.mkdir()
    samples = pictures()
    write_beton(folder / "val.beton", iter(samples), len(samples) + 3)
    (folder / "classes.json").write_text(json.dumps([str(sample.target) for sample in samples]))
    if request.param == "stock":
        unseal(folder / "val.beton")
    return folder


def unseal(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(METADATA - FIELD["arguments"].itemsize)
        assert file.read(7) == b"sha256:"
        file.seek(METADATA - FIELD["arguments"].itemsize)
        file.write(bytes(FIELD["arguments"].itemsize))


def edit(path: Path, change: Callable[[Tables], object]) -> None:
    """Changes the tables of a file in place; keeps the seal as it is."""
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, HEADER, 1)
    count, table_at = int(header["num_samples"][0]), int(header["alloc_table_ptr"][0])
    places = {"header": (HEADER, 1, 0), "fields": (FIELD, 2, HEADER.itemsize)}
    places |= {"metadata": (SAMPLES[Field.INT], count, METADATA), "table": (ALLOCATION, count, table_at)}
    change({name: np.frombuffer(content, *place) for name, place in places.items()})
    path.write_bytes(content)


def test_a_thousand_mutations_of_the_tables_end_in_one_line_or_the_same_pixels(root):
    options = ["--sealed"] if root.name == "sealed" else []
    counts = last_json(succeed("tests/beton_fuzz.py", root, 7, 1000, *options))
    assert counts["refused"] + counts["same"] == 1000 and counts["same"] > 5


def header(name: str, value: int) -> Callable[[Tables], object]:
    return lambda tables: tables["header"].__setitem__(name, value)


def image(name: str, value: int) -> Callable[[Tables], object]:
    return lambda tables: tables["metadata"]["f0"][name].__setitem__(3, value)


def row(name: str, value: int) -> Callable[[Tables], object]:
    return lambda tables: tables["table"][name].__setitem__(3, value)


def place(value: int) -> Callable[[Tables], object]:
    return lambda tables: (image("data_ptr", value)(tables), row("ptr", value)(tables))


def shared(tables: Tables) -> None:
    """Gives sample 3 the size and the bytes of sample 1, both raw."""
    metadata, table = tables["metadata"]["f0"], tables["table"]
    metadata[3] = metadata[1]
    table[["ptr", "size"]][3] = table[["ptr", "size"]][1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (header("num_samples", 2**60), "samples"), (header("num_samples", 13), "samples"),
        (header("num_samples", 0), "samples"), (header("alloc_table_ptr", HUGE), "samples"),
        (header("num_fields", 3), "2 fields"),
        (image("height", 0), "sample 3: height 0"), (image("width", 0), "sample 3: width 0"),
        (lambda tables: [image(name, 65_535)(tables) for name in ("height", "width")], f"at most {LARGEST_AREA}"),
        (image("mode", 2), "sample 3: mode 2"), (image("data_ptr", HUGE), "data_ptr"), (row("ptr", HUGE), "data_ptr"),
        (row("size", 0), "sample 3: size 0"), (row("size", HUGE), "size"), (row("sample_id", 4), "one of each"),
        (place(HUGE), "data_ptr"), (place(24), "data_ptr 24"), (shared, "after the previous sample"),
    ],
)  # fmt: skip
def test_an_impossible_field_is_refused_with_its_name_and_value(root, change, word):
    edit(root / "val.beton", change)
    with pytest.raises(UserError, match="expected") as refusal:
        BetonFile(root / "val.beton")
    assert word in str(refusal.value) and str(root) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("sides", [(8, 8), (200, 200), (41, 40)], ids=str)
def test_a_jpeg_whose_size_differs_from_its_metadata_is_an_error_that_names_both(tmp_path, sides):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    write_beton(
        tmp_path / "x.beton", iter([Encoded(0, 40, 40, jpeg(pixels), 0), Encoded(0, *sides, jpeg(pixels), 1)]), 2
    )
    file = BetonFile(tmp_path / "x.beton")
    words = f"sample 1 is damaged: a JPEG of 40 x 40 pixels: expected {sides[1]} x {sides[0]}"
    assert words in str(decoded(file, 1, (0, 0, 8, 8), (8, 8)))


def test_a_jpeg_of_unusual_subsampling_is_decoded(tmp_path):
    grey = jpeg(np.full((16, 16, 3), 128, np.uint8), optimize=True)  # every block is two zero bits
    head = bytearray(grey[: grey.index(b"\xff\xda") + 14])
    factors = head.index(b"\xff\xc0") + 11
    head[factors : factors + 7 : 3] = 0x21, 0x12, 0x11  # five blocks, ten bits
    write_beton(tmp_path / "x.beton", iter([Encoded(0, 16, 16, bytes(head) + b"\x00\x3f\xff\xd9", 0)]), 1)
    assert np.all(decoded(BetonFile(tmp_path / "x.beton"), 0, (0, 0, 16, 16), (16, 16)) == 128)


def test_a_changed_label_is_refused_in_a_sealed_file(root):
    edit(root / "val.beton", lambda tables: tables["metadata"]["f1"].__setitem__(3, 4))
    if root.name == "stock":
        assert BetonFile(root / "val.beton").targets[3] == 4
    else:
        with pytest.raises(UserError, match="labels or offsets are not as written"):
            BetonFile(root / "val.beton")


def test_the_digest_does_not_depend_on_the_seal(root):
    before = BetonFile(root / "val.beton").digest
    edit(root / "val.beton", lambda tables: tables["fields"].__setitem__(slice(None), sealed(tables["fields"], before)))
    assert BetonFile(root / "val.beton").digest == before


STOCK_WRITER = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
fields = {"image": RGBImageField(write_mode="smart", smart_threshold=3 * 30 * 26), "label": IntField()}
samples = [(np.full((20 + n, 30, 3), 20 * n, np.uint8), n) for n in range(12)]
DatasetWriter(sys.argv[1], fields, num_workers=3).from_indexed_dataset(samples, chunksize=1)
"""


@pytest.mark.slow(reason="stock FFCV compiles its writer in each worker")
def test_files_that_stock_ffcv_writes_with_several_workers_are_read(tmp_path):
    subprocess.run([sys.executable, "-c", STOCK_WRITER, tmp_path / "x.beton"], check=True, capture_output=True)
    file = BetonFile(tmp_path / "x.beton")
    assert file.targets.tolist() == list(range(12)) and set(file._modes) == {0, 1}
    for sample in range(12):
        assert np.abs(decoded(file, sample, (3, 5, 8, 8), (8, 8)).astype(int) - 20 * sample).max() <= 2


def test_a_negative_label_is_refused_with_its_value(root):
    unsealed = sealed(np.zeros(2, FIELD), "")["arguments"]
    edit(root / "val.beton", lambda tables: tables["fields"]["arguments"].__setitem__(slice(None), unsealed))
    edit(root / "val.beton", lambda tables: tables["metadata"]["f1"].__setitem__(3, -1))
    with pytest.raises(UserError, match="label -1: expected 0 to 13"):
        LOADERS["ffcv"](root, "val", READING)


def test_a_file_truncated_while_in_use_is_an_error_that_names_it(root):
    loader = LOADERS["ffcv"](root, "val", READING)
    os.truncate(root / "val.beton", 5000)
    with pytest.raises(RunError, match=r"val\.beton: truncated while in use: expected \d+ bytes, found 5000"):
        next(iter(loader.eval_epoch((16, 16))))
    loader.close()


def test_a_jpeg_of_the_wrong_size_is_skipped_like_any_damaged_one(tmp_path):
    samples = [sample._replace(height=sample.height + 1) if n == 2 else sample for n, sample in enumerate(pictures())]
    write_beton(tmp_path / "train.beton", iter(samples), 14)
    (tmp_path / "classes.json").write_text(json.dumps([str(sample.target) for sample in samples]))
    loader = LOADERS["ffcv"](tmp_path, "train", replace(READING, part=Part(14, 1, 0, 1, 0), skip_damaged=True))
    (batch,) = loader.train_epoch(0, (16, 16))
    assert len(batch.damaged) == 1 and "sample 2 is damaged: a JPEG of" in batch.damaged[0]
    assert 2 not in batch.samples and batch.targets.tolist() == batch.samples.tolist()
    loader.close()


@pytest.mark.parametrize("marker", [b"\xff\xc3", b"\xff\xf7"], ids=["another process", "an unknown marker"])
def test_a_bad_header_does_not_make_the_samples_after_it_damaged(tmp_path, marker):
    samples = pictures()
    bad = samples[2]._replace(content=samples[2].content.replace(b"\xff\xc0", marker))
    write_beton(tmp_path / "train.beton", iter([*samples[:2], bad, *samples[3:]]), 14)
    (tmp_path / "classes.json").write_text(json.dumps([str(sample.target) for sample in samples]))
    loader = LOADERS["ffcv"](tmp_path, "train", replace(READING, part=Part(14, 1, 0, 1, 0), skip_damaged=True))
    (batch,) = loader.train_epoch(0, (16, 16))
    assert len(batch.damaged) == 1 and sorted(batch.samples.tolist()) == [0, 1, 3, 3, *range(4, 14)]
    loader.close()


def test_the_digest_depends_on_sizes_labels_and_offsets_and_nothing_else(tmp_path):
    samples = pictures()
    first, second, raw = (samples[:number] for number in (14, 13, 2))
    others = [
        second,
        [samples[0]._replace(target=7), *samples[1:]],
        [samples[0], samples[1]._replace(width=samples[1].height, height=samples[1].width), *samples[2:]],
        [*samples[2:], *raw],
    ]
    brighter = samples[1]._replace(content=bytes(len(samples[1].content)))
    digests = []
    for listed in [first, [samples[0], brighter, *samples[2:]], *others]:
        write_beton(tmp_path / "x.beton", iter(listed), 14)
        digests.append(BetonFile(tmp_path / "x.beton").digest)
    assert digests[0] == digests[1] and len(set(digests)) == 1 + len(others)
    assert len(digests[0]) == 64 and int(digests[0], 16)


@pytest.mark.parametrize("verify", ["once", "always", "never"])
@pytest.mark.parametrize("decode", ["own", "ffcv"])
def test_changed_bytes_that_decode_are_found_by_their_checksum_when_asked_for(tmp_path, verify, decode):
    samples = pictures()
    write_beton(tmp_path / "val.beton", iter(samples), 14)
    (tmp_path / "classes.json").write_text(json.dumps([str(sample.target) for sample in samples]))
    reading = replace(READING, part=Part(14, 1, 0, 1, 0), verify=verify, decode=decode)
    loader = LOADERS["ffcv"](tmp_path, "val", reading)
    at = int(loader._file._offsets[1])  # a raw one

    def change() -> None:
        with (tmp_path / "val.beton").open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    assert len(list(loader.eval_epoch((16, 16)))) == 1
    change()
    for opened, is_found in (
        (loader, verify == "always"),
        (LOADERS["ffcv"](tmp_path, "val", reading), verify != "never"),
    ):
        if is_found:
            with pytest.raises(RunError, match=r"val\.beton: sample 1 is damaged: its bytes are not as written"):
                next(iter(opened.eval_epoch((16, 16))))
        else:
            assert len(list(opened.eval_epoch((16, 16)))) == 1
        opened.close()


def test_a_changed_mask_is_found_by_its_checksum_and_files_without_checksums_are_read(tmp_path):
    path, mask = tmp_path / "val.beton", png_of(np.zeros((20, 30), np.uint8))
    write_beton(path, [Encoded(1, 30, 20, bytes(1800), mask)], 1, Field.BYTES)
    file = BetonFile(path)
    assert isinstance(decoded(file, 0, (0, 0, 20, 30), (8, 8)), np.ndarray)
    content = path.read_bytes()
    path.write_bytes(content.replace(mask, mask[:-1] + b"?"))
    assert "not as written" in str(decoded(BetonFile(path), 0, (0, 0, 20, 30), (8, 8)))
    without = bytearray(content)  # as earlier versions wrote, but for the bytes before the table
    place = HEADER.itemsize + FIELD.fields["arguments"][1]
    without[place : place + 5] = bytes(5)
    path.write_bytes(without)
    unseal(path)
    assert isinstance(decoded(BetonFile(path), 0, (0, 0, 20, 30), (8, 8)), np.ndarray)
