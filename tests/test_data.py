"""Preparation and the two loaders on real image files."""

import io
import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PER_CLASS, write_folders
from PIL import Image
from readers import CROP, decoded, epoch_pixels, reading

from en.data import LOADERS, ImageLoader, Part, Reading, jpeg
from en.data.crops import CentreCrop
from en.data.ffcv import tables
from en.data.ffcv.file import BetonFile
from en.data.ffcv.writer import Encoded, write_beton
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.targets import Field
from en.errors import RunError, UserError

TRAIN = PER_CLASS["train"] * CLASSES


def open_loader(kind: str, folders: Path, betons: Path, split: str = "train", **options: int) -> ImageLoader:
    return LOADERS[kind](betons if kind == "ffcv" else folders, split, reading(**options))


def test_two_runs_see_the_same_pixels_whatever_the_number_of_workers(kind, folders, betons):
    loaders = [open_loader(kind, folders, betons, workers=workers) for workers in (1, 2)]
    first, *others = [[epoch_pixels(loader, epoch) for epoch in (0, 1)] for loader in loaders]
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[sample], theirs[sample]) for sample in mine)
    assert list(first[0]) != list(first[1])
    assert sum(torch.equal(first[0][s], first[1][s]) for s in first[0]) < 3
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_rank_sees(kind, folders, betons, world_size):
    whole = epoch_pixels(open_loader(kind, folders, betons, batch_size=24), 3)
    parts = [
        epoch_pixels(open_loader(kind, folders, betons, batch_size=24, rank=r, world_size=world_size), 3)
        for r in range(world_size)
    ]
    assert sorted(whole) == sorted(sample for part in parts for sample in part)
    assert all(torch.equal(whole[sample], pixels) for part in parts for sample, pixels in part.items())


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 23])
def test_evaluation_sees_every_image_exactly_once_over_any_number_of_ranks(kind, folders, betons, world_size):
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        loader = open_loader(
            kind, folders, betons, "val", rank=rank, world_size=world_size, batch_size=3 * world_size, workers=1
        )
        for batch in loader.eval_epoch((32, 32)):
            seen.update(batch.samples.tolist())
        loader.close()
    assert seen == dict.fromkeys(range(PER_CLASS["val"] * CLASSES), 1)


def test_chosen_images_come_in_the_order_asked_for_as_evaluation_shows_them(kind, folders, betons):
    loader = open_loader(kind, folders, betons, "val", batch_size=3, workers=1)
    whole = {
        s: i for batch in loader.eval_epoch((32, 32)) for s, i in zip(batch.samples.tolist(), batch.images, strict=True)
    }
    chosen = [17, 2, 5, 19, 0, 2, 11]
    batches = list(loader.eval_samples(np.array(chosen), (32, 32)))
    loader.close()
    assert [len(batch.samples) for batch in batches] == [3, 3, 1]
    assert [sample for batch in batches for sample in batch.samples.tolist()] == chosen
    images = torch.cat([batch.images for batch in batches])
    assert all(torch.equal(image, whole[sample]) for sample, image in zip(chosen, images, strict=True))


def test_both_loaders_show_the_same_pixels_of_the_same_crops(folders, betons):
    mine, theirs = (epoch_pixels(open_loader(kind, folders, betons), 2) for kind in ("ffcv", "folder"))
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[s], theirs[s]) for s in mine)
    other = epoch_pixels(open_loader("folder", folders, betons), 3)
    assert np.mean([(mine[s].float() - other[s].float()).abs().mean().item() for s in mine]) > 15


def test_labels_and_classes_are_those_of_the_folders(kind, folders, betons):
    loader = open_loader(kind, folders, betons)
    assert loader.classes == sorted(path.name for path in (folders / "train").iterdir())
    assert loader.samples == TRAIN and loader.name == "clothes"
    files = [path for name in loader.classes for path in sorted((folders / "train" / name).iterdir())]
    for batch in loader.train_epoch(0, (16, 16)):
        for sample, label in zip(batch.samples.tolist(), batch.targets.tolist(), strict=True):
            assert files[sample].parent.name == loader.classes[label]


def test_a_batch_keeps_its_pixels_while_later_ones_are_made(kind, folders, betons):
    batches = list(open_loader(kind, folders, betons).train_epoch(0, (32, 32)))
    copies = [batch.images.clone() for batch in batches]
    again = list(open_loader(kind, folders, betons).train_epoch(0, (32, 32)))
    for batch, copy, other in zip(batches, copies, again, strict=True):
        assert torch.equal(batch.images, copy) and torch.equal(batch.images, other.images)


def test_the_memory_of_batches_is_used_again_once_nobody_holds_them(folders, betons):
    loader = open_loader("ffcv", folders, betons, batch_size=8)
    addresses = [batch.images.data_ptr() for batch in loader.train_epoch(0, (32, 32))]
    assert len(addresses) == 12 and len(set(addresses)) <= 6
    kept = list(loader.train_epoch(0, (32, 32)))
    assert len({batch.images.data_ptr() for batch in kept}) == 12
    loader.close()


def test_the_resolution_may_change_between_epochs(kind, folders, betons):
    loader = open_loader(kind, folders, betons)
    for resolution in (16, 40, 24):
        assert next(iter(loader.train_epoch(0, (resolution, resolution)))).images.shape[2:] == (resolution, resolution)
    loader.close()


@pytest.mark.parametrize("storage", ["jpeg", "as-is"])
def test_jpeg_files_are_stored_without_loss_or_byte_for_byte_and_stock_ffcv_reads_them(
    folders, betons, tmp_path, storage
):
    from ffcv.reader import Reader

    root = betons
    if storage == "as-is":
        root, counts = tmp_path, prepare(read_source(str(folders)), tmp_path, Storage(storage), 2, False)
        assert counts["as_they_are"] == counts["train"] + counts["val"]
    reader = Reader(str(root / "train.beton"))
    content = (root / "train.beton").read_bytes()
    files = [p for c in sorted((folders / "train").iterdir()) for p in sorted(c.iterdir())]
    sizes = {int(row["ptr"]): int(row["size"]) for row in reader.alloc_table}
    for path, image in zip(files, reader.metadata["f0"], strict=True):
        start = int(image["data_ptr"])
        stored, whole = content[start : start + sizes[start]], path.read_bytes()
        assert stored == (whole if storage == "as-is" else jpeg.transcode(whole))
        with Image.open(path) as picture, Image.open(io.BytesIO(stored)) as kept:
            assert (image["width"], image["height"]) == picture.size
            assert np.array_equal(np.asarray(picture), np.asarray(kept))
    assert reader.field_names == ["image", "label"] and reader.handlers["label"].__class__.__name__ == "IntField"


def test_the_layout_is_that_of_the_stock_package():
    from ffcv import types
    from ffcv.fields import BytesField, IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert tables.VERSION == types.CURRENT_VERSION
    assert types.get_metadata_type([RGBImageField(), IntField()]) == tables.SAMPLES[Field.INT]
    assert types.get_metadata_type([RGBImageField(), BytesField()]) == tables.SAMPLES[Field.BYTES]
    for mine, stock in [
        (tables.HEADER, types.HeaderType),
        (tables.FIELD, types.FieldDescType),
        (tables.ALLOCATION, types.ALLOC_TABLE_TYPE),
    ]:
        assert mine.itemsize == stock.itemsize and mine.names == stock.names
        assert all(mine.fields[name] == stock.fields[name] for name in mine.names)
    numbers = (tables.IMAGES, Field.INT, Field.BYTES)
    assert [types.TYPE_ID_HANDLER[number] for number in numbers] == [RGBImageField, IntField, BytesField]
    assert (IMAGE_MODES["jpg"], IMAGE_MODES["raw"]) == (tables.JPEG, tables.RAW)


def test_stock_ffcvs_loader_gives_the_same_images_but_for_its_fast_dct(tmp_path):
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    root = write_folders(tmp_path / "images", {"train": 1, "val": PER_CLASS["val"]})
    for path in (root / "val").rglob("*[13].jpg"):
        Image.open(path).save(path.with_suffix(".png"))  # stored as pixels
        path.unlink()
    prepare(read_source(str(root)), tmp_path / "beton", Storage(), 2, False)
    path = tmp_path / "beton" / "val.beton"
    pipelines = {"image": [CenterCropRGBImageDecoder((32, 32), 1.0)]}
    images, labels = next(
        iter(Loader(str(path), 20, 1, order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines))
    )
    part = Part(20, 1, 0, 1, 0)
    mine = LOADERS["ffcv"](path.parent, "val", Reading(part, CROP, CentreCrop(1.0), 2, 30, False, decode="ffcv"))
    batch = next(iter(mine.eval_epoch((32, 32))))
    assert labels.flatten().tolist() == batch.targets.tolist()
    differences = np.abs(np.asarray(images).astype(int) - batch.images.permute(0, 2, 3, 1).numpy()).max((1, 2, 3))
    is_raw = BetonFile(path)._modes == tables.RAW
    assert is_raw.sum() == 2 * CLASSES and not differences[is_raw].any()
    assert 0 < differences[~is_raw].max() <= 8


def spoil(betons: Path, copy: Path, what: str) -> Path:
    copy.mkdir()
    for path in betons.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    train = copy / "train.beton"
    content = bytearray(train.read_bytes())
    if what == "truncated":
        train.write_bytes(content[: len(content) // 2])
    elif what == "version":
        train.write_bytes(b"\x63\x00" + content[2:])
    elif what == "other file":
        train.write_bytes(b"hello")
    elif what == "empty":
        train.write_bytes(b"")
    elif what == "classes":
        (copy / "classes.json").write_text(json.dumps(["only one"]))
    elif what == "no classes":
        (copy / "classes.json").unlink()
    elif what == "not a list":
        (copy / "classes.json").write_text("{}")
    elif what == "missing":
        train.unlink()
    elif what == "pixels":
        file = BetonFile(train)
        start = int(file._offsets[11]) + 300
        content[start : start + 200] = bytes(200)
        train.write_bytes(content)
    return copy


@pytest.mark.parametrize(
    "what", ["truncated", "version", "other file", "empty", "classes", "no classes", "not a list", "missing"]
)
def test_a_beton_that_cannot_be_used_is_refused_at_the_start(betons, tmp_path, what):
    with pytest.raises(UserError, match="expected") as refusal:
        LOADERS["ffcv"](spoil(betons, tmp_path / "bad", what), "train", reading())
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_data_for_the_other_loader_or_for_none_are_refused_with_what_to_do(folders, betons, tmp_path):
    (tmp_path / "empty").mkdir()
    prepared = "expected OUT of `en-prepare SOURCE OUT`"
    for kind, root, words in [
        (
            "ffcv",
            folders,
            f"class folders, not prepared: {prepared}, or data.loader=folder",
        ),
        ("ffcv", tmp_path / "empty", f"no classes.json, so not prepared: {prepared}"),
        ("ffcv", tmp_path / "none", f"no such folder: {prepared}"),
        ("folder", betons, "prepared data, without class folders: expected those, or data.loader=ffcv"),
    ]:
        with pytest.raises(UserError) as refusal:
            LOADERS[kind](root, "val", reading())
        assert str(refusal.value) == f"{root}: {words}"


def test_a_damaged_sample_is_an_error_that_names_it_never_pixels(kind, folders, betons, tmp_path):
    if kind == "ffcv":
        loader, name = LOADERS[kind](spoil(betons, tmp_path / "bad", "pixels"), "train", reading()), "sample 11"
    else:
        root = write_folders(tmp_path / "bad", {"train": 8, "val": 2})
        victim = sorted((root / "train").rglob("*.jpg"))[11]
        victim.write_bytes(victim.read_bytes()[:300])
        loader, name = LOADERS[kind](root, "train", reading()), str(victim)
    with pytest.raises(RunError, match="damaged") as failure:
        epoch_pixels(loader, 0)
    assert name in str(failure.value)
    loader.close()


def test_a_stalled_ffcv_loader_is_an_error_within_its_time_limit(betons):
    loader = LOADERS["ffcv"](betons, "train", reading(timeout_s=1))
    release = threading.Event()
    loader._pool.submit(release.wait)
    loader._pool.submit(release.wait)
    started = time.monotonic()
    with pytest.raises(RunError, match="no batch for 1 s"):
        next(iter(loader.train_epoch(0, (16, 16))))
    assert time.monotonic() - started < 10
    release.set()


def test_a_folder_worker_that_ends_only_after_an_error_is_still_named_as_its_cause(folders, monkeypatch):
    loader = LOADERS["folder"](folders, "train", reading(workers=1))
    batches = loader.train_epoch(0, (16, 16))
    next(batches)
    (worker,) = loader._workers()

    def fail(_: object) -> None:
        threading.Timer(0.3, worker.kill).start()
        raise ConnectionResetError(104, "Connection reset by peer")  # what a receiver sees of a worker that dies

    monkeypatch.setattr(loader, "_next", fail)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own, which may or may not come first
    try:
        with pytest.raises(RunError, match=rf"DataLoader worker \(pid {worker.pid}\) was killed by signal 9"):
            next(batches)
    finally:
        loader.close()
        signal.signal(signal.SIGCHLD, handler)


def test_an_error_of_the_folder_loader_without_a_worker_that_ended_is_told_as_it_is(folders, monkeypatch):
    loader = LOADERS["folder"](folders, "train", reading(workers=0))

    def fail(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(loader, "_next", fail)
    with pytest.raises(RunError, match=r"the data loader failed: \[Errno 24\] Too many open files"):
        next(loader.train_epoch(0, (16, 16)))


def test_a_sample_never_crosses_a_page_and_large_ones_have_their_own(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        Encoded(1, w, 1000, rng.integers(0, 255, 3000 * w, np.uint8).tobytes(), i)
        for i, w in enumerate([900, 1800, 100, 2500])
    ]
    assert write_beton(tmp_path / "x.beton", iter(rows), at_most=9) == 4
    file = BetonFile(tmp_path / "x.beton")
    assert file.targets.tolist() == [0, 1, 2, 3]
    for sample, row in enumerate(rows):
        assert decoded(file, sample, (0, 0, 1000, row.width), (1000, row.width)).tobytes() == row.content
    pages = {(int(o) >> 23, int(o + s - 1) >> 23) for o, s in zip(file._offsets, file._sizes, strict=True)}
    assert all(first == last for first, last in pages)
