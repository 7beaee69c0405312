"""The colours that a network sees are those of the files, whatever the loader and the form in which they are stored."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jpeg
from PIL import Image
from readers import CROP, epoch_pixels

from en.benchmarks.photographs import photograph
from en.data import LOADERS, ImageLoader, Part, Reading
from en.data.crops import CentreCrop
from en.data.ffcv.kernels import decode_jpeg
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": -1}
QUALITIES = (60, 80, 90, 96)
SIDE = 128
EACH = 4
COUNT = len(SAMPLINGS) * len(QUALITIES) * EACH


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name of the storage, and "folder": images of SIDE x SIDE pixels of each sampling and quality."""
    root = tmp_path_factory.mktemp("photographs")
    for split in ("train", "val"):
        (root / "folder" / split / "all").mkdir(parents=True)
    for number in range(COUNT):
        sampling = list(SAMPLINGS.values())[number % len(SAMPLINGS)]
        quality = QUALITIES[number // len(SAMPLINGS) % len(QUALITIES)]
        options = {"quality": quality, "subsampling": sampling}
        content = jpeg(photograph(number)[:SIDE, :SIDE], "L" if sampling < 0 else "RGB", **options)
        for split in ("train", "val"):
            (root / "folder" / split / "all" / f"{number:03}.jpg").write_bytes(content)
    for kind in ("jpeg", "raw"):
        prepare(read_source(str(root / "folder")), root / kind, Storage(kind), 2, False)
    return {name: root / name for name in ("folder", "jpeg", "raw")}


def loader_of(name: str, root: Path, split: str) -> ImageLoader:
    reading = Reading(Part(COUNT, 1, 0, 1, 7), CROP, CentreCrop(1.0), 2, 60, False)
    return LOADERS["folder" if name == "folder" else "ffcv"](root, split, reading)


def test_whole_images_are_the_same_to_the_bit_by_both_loaders_and_stored_as_jpeg_or_raw(photographs):
    batches = [next(iter(loader_of(name, root, "val").eval_epoch((SIDE, SIDE)))) for name, root in photographs.items()]
    for batch in batches[1:]:
        assert torch.equal(batch.images, batches[0].images) and batch.samples.tolist() == list(range(COUNT))


def test_colours_of_resized_crops_agree_in_the_mean_by_channel_sampling_and_quality(photographs):
    seen = {name: epoch_pixels(loader_of(name, root, "train"), 0, 64) for name, root in photographs.items()}
    for chosen in [range(COUNT), *(range(start, COUNT, len(SAMPLINGS)) for start in range(len(SAMPLINGS)))]:
        means = {name: torch.stack([own[s] for s in chosen]).double().mean((0, 2, 3)) for name, own in seen.items()}
        for name in ("jpeg", "raw"):
            assert (means[name] - means["folder"]).abs().max() < 0.1, (name, chosen, means)
    assert all(torch.equal(seen["jpeg"][sample], pixels) for sample, pixels in seen["raw"].items())


def without_segments(content: bytes, marker: int) -> bytes:
    """Cuts a JPEG file's segments of one kind."""
    while (start := content.find(bytes([0xFF, marker]))) >= 0:
        content = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]
    return content


def test_no_file_is_decoded_with_the_tables_of_the_file_before():
    whole = jpeg(photograph(0)[:64, :64], quality=90)
    out = np.empty(3 * 64 * 64, np.uint8)

    def code(content: bytes) -> int:
        data = np.frombuffer(content, np.uint8)
        return decode_jpeg(data.ctypes.data, data.size, 64, 64, out)

    assert code(whole) == 0
    assert np.array_equal(out.reshape(64, 64, 3), np.asarray(Image.open(io.BytesIO(whole))))
    assert code(without_segments(whole, 0xDB)) != 0
