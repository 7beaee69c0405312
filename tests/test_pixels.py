"""The colours that a network sees are those of the files, whatever the loader and the form in which they are stored."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jpeg
from PIL import Image
from readers import CROP, epoch_pixels
from torchvision.transforms.v2 import functional as transforms

from en.benchmarks.photographs import noise
from en.data import LOADERS, ImageLoader, Part, Reading
from en.data.crops import CentreCrop, Crop, ResizeCrop
from en.data.ffcv.kernels import decode_jpeg
from en.data.jpeg import show as pillow
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.targets import ClassMap, png_of

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": -1}
QUALITIES = (60, 80, 90, 96)
SIDE = 128
EACH = 4
WHOLE = CentreCrop(1.0)
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
        content = jpeg(noise(number, 384, 512)[:SIDE, :SIDE], "L" if sampling < 0 else "RGB", **options)
        for split in ("train", "val"):
            (root / "folder" / split / "all" / f"{number:03}.jpg").write_bytes(content)
    for kind in ("jpeg", "as-is", "raw"):
        prepare(read_source(str(root / "folder")), root / kind, Storage(kind), 2, False)
    return {name: root / name for name in ("folder", "jpeg", "as-is", "raw")}


def loader_of(name: str, root: Path, split: str, crop: Crop = WHOLE, decode: str = "own") -> ImageLoader:
    reading = Reading(Part(COUNT, 1, 0, 1, 7), CROP, crop, 2, 60, False, decode=decode)
    return LOADERS["folder" if name == "folder" else "ffcv"](root, split, reading)


def test_whole_images_are_the_same_to_the_bit_by_both_loaders_and_stored_as_jpeg_or_raw(photographs):
    batches = [next(iter(loader_of(name, root, "val").eval_epoch((SIDE, SIDE)))) for name, root in photographs.items()]
    for batch in batches[1:]:
        assert torch.equal(batch.images, batches[0].images) and batch.samples.tolist() == list(range(COUNT))


def test_crops_are_the_same_to_the_bit_by_both_loaders_and_stored_as_jpeg_or_raw_and_are_pillows(photographs):
    training = {name: epoch_pixels(loader_of(name, root, "train"), 0, 64) for name, root in photographs.items()}
    evaluation = {
        name: next(iter(loader_of(name, root, "val", CentreCrop(0.875)).eval_epoch((56, 80)))).images
        for name, root in photographs.items()
    }
    for name in photographs:
        assert all(torch.equal(training["folder"][sample], pixels) for sample, pixels in training[name].items())
        assert torch.equal(evaluation["folder"], evaluation[name])
    sides, samples = np.full(COUNT, SIDE), np.arange(COUNT)
    views = CROP(7, 0, samples, sides, sides, (64, 64)), CentreCrop(0.875)(7, 0, samples, sides, sides, (56, 80))
    for number, path in enumerate(sorted((photographs["folder"] / "val" / "all").iterdir())):
        image = Image.open(path).convert("RGB")
        for view, found in zip(views, (training["folder"], evaluation["folder"]), strict=True):
            pixels = found[number]
            box, size = view.boxes[number].tolist(), list(view.size)
            expected = np.asarray(pillow(image, box, size, [0, 0], view.size))
            expected = expected[:, ::-1] if view.flips[number] else expected
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_resize_crop_is_torchvisions_resize_and_centre_crop_by_both_loaders_and_of_masks(photographs):
    seen = {
        name: next(iter(loader_of(name, root, "val", ResizeCrop(0.875)).eval_epoch((56, 56)))).images
        for name, root in photographs.items()
    }
    other = next(iter(loader_of("raw", photographs["raw"], "val", CentreCrop(0.875)).eval_epoch((56, 56)))).images
    for name in photographs:
        assert torch.equal(seen["folder"], seen[name]) and not torch.equal(seen[name], other)
    for number, path in enumerate(sorted((photographs["folder"] / "val" / "all").iterdir())):
        image = transforms.resize(Image.open(path).convert("RGB"), [64], antialias=True)
        assert torch.equal(seen["folder"][number], transforms.pil_to_tensor(transforms.center_crop(image, [56, 56])))
    sides = np.array([40]), np.array([60])
    view = ResizeCrop(0.5)(0, 0, np.zeros(1, int), *sides, (20, 20))  # to 40 x 60, as it is
    numbers = (np.arange(40 * 60) % 250).reshape(40, 60).astype(np.uint8)
    assert np.array_equal(ClassMap().cut(png_of(numbers), view, 0), numbers[10:30, 20:40])


def test_ffcvs_kernels_show_the_same_crops_with_other_pixels_and_the_same_colours_in_the_mean(photographs):
    own, others = (
        epoch_pixels(loader_of("jpeg", photographs["jpeg"], "train", decode=decode), 0, 64)
        for decode in ("own", "ffcv")
    )
    for chosen in [range(COUNT), *(range(start, COUNT, len(SAMPLINGS)) for start in range(len(SAMPLINGS)))]:
        mine, theirs = (torch.stack([seen[s] for s in chosen]).double().mean((0, 2, 3)) for seen in (own, others))
        assert (mine - theirs).abs().max() < 0.1
    assert list(own) == list(others) and not any(torch.equal(own[sample], others[sample]) for sample in own)


def without_segments(content: bytes, marker: int) -> bytes:
    """Cuts a JPEG file's segments of one kind."""
    while (start := content.find(bytes([0xFF, marker]))) >= 0:
        content = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]
    return content


def test_no_file_is_decoded_with_the_tables_of_the_file_before():
    whole = jpeg(noise(0, 384, 512)[:64, :64], quality=90)
    out = np.empty(3 * 64 * 64, np.uint8)

    def code(content: bytes) -> int:
        data = np.frombuffer(content, np.uint8)
        return decode_jpeg(data.ctypes.data, data.size, 64, 64, out)

    assert code(whole) == 0
    assert np.array_equal(out.reshape(64, 64, 3), np.asarray(Image.open(io.BytesIO(whole))))
    assert code(without_segments(whole, 0xDB)) != 0
