"""Rectangles, boxes that reach beyond the image, maps as targets, and a task that is learned from them."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import disc_task
import numpy as np
import pytest
import torch
from commands import last_json, succeed
from conftest import ended
from PIL import Image
from readers import reading
from torch.nn import functional as F

from en.config.reading import load_config
from en.data import LOADERS
from en.data.crops import CentreCrop, RandomResizedCrop
from en.data.decoding import DamagedImage
from en.data.ffcv.file import BetonFile
from en.data.ffcv.tables import ALLOCATION, FIELD, HEADER, METADATA, SAMPLES
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source, registry
from en.data.targets import IGNORE, ClassMap, Field, png_of
from en.data.views import View
from en.errors import RunError, UserError
from en.models import build_model
from en.reports.files import write_report
from en.reports.variants import resolution
from en.runs import checkpoint
from en.runs.summary import Summary
from en.tasks import TASKS
from en.tasks.classification import Classification
from en.training.optimizer import build_optimizer
from en.training.run import TrainingRun
from en.training.signals import StopRequest

COUNTS = {"train": 26, "val": 11}
RECIPE = """
model: {name: two convolutions}
norm: {name: en, hidden: 2}
task: {name: discs}
data: {root: unset, resolution: [24, 40], workers: 1}
train: {epochs: 2, batch_size: 6, ema_decay: 0.5, progressive: {start_resolution: 16, until_epoch: 1, multiple: 4}}
optim: {lr: 0.2, head_lr_factor: 2}
checkpoint: {every_steps: 1, keep: 99}
device: cpu
"""


@pytest.fixture(autouse=True)
def discs(monkeypatch):
    """The task and the form of its data among the others."""
    monkeypatch.setitem(TASKS, "discs", disc_task.Discs)
    monkeypatch.setattr(registry, "FORMS", registry.FORMS)
    disc_task.register()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return disc_task.write_discs(tmp_path_factory.mktemp("discs") / "discs", COUNTS)


@pytest.fixture(scope="module")
def roots(images, tmp_path_factory):
    """Where the loaders find the same data."""
    out = tmp_path_factory.mktemp("prepared") / "discs"
    prepare(disc_task.read_discs(images), out, Storage(), 2, False)
    return {"ffcv": out, "folder": images}


@pytest.fixture
def train(roots, tmp_path):
    """Trains the recipe into a folder of that name, with overrides."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def run(name: str, *overrides: str, kind: str = "ffcv") -> Path:
        options = [f"data.root={roots[kind]}", f"data.loader={kind}", f"run_dir={tmp_path / name}", *overrides]
        TrainingRun(load_config(str(recipe), options), "recipe.yaml", StopRequest()).train()
        return tmp_path / name

    return run


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def views(task_crop, kind, roots, split="val", size=(24, 40)):
    seen = replace(reading(batch_size=4), evaluation_crop=task_crop, padding=(1, 2, 3))
    loader = LOADERS[kind](roots[kind], split, seen)
    batches = list(loader.eval_epoch(size))
    loader.close()
    return loader, {
        sample: (image, target)
        for batch in batches
        for sample, image, target in zip(batch.samples.tolist(), batch.images, batch.targets, strict=True)
    }


@pytest.mark.parametrize("flip", [False, True])
def test_a_box_beyond_the_image_shows_what_padding_cropping_and_torchs_resizing_do(kind, roots, flip):
    """Takes boxes and sizes whose ends meet: each pixel of the view is two of the image, or a whole one of padding."""

    def crop(seed, epoch, samples, heights, widths, size):
        boxes = np.stack([samples * 0 - 10, samples * 0 - 8, samples * 0 + 80, samples * 0 + 96], 1)
        return View(boxes, np.full(len(samples), flip), size)

    _, found = views(crop, kind, roots, size=(40, 48))
    source, compared = disc_task.read_discs(roots["folder"]), 0
    for number, sample in enumerate(source.splits["val"]):
        image, mask = np.asarray(Image.open(sample.image)), np.asarray(Image.open(sample.target))
        height, width = mask.shape
        if height % 2 or width % 2:
            continue
        compared += 1
        numbers = np.where(mask == IGNORE, IGNORE, mask // 10)
        whole = np.full((80, 96), IGNORE, np.float32)
        whole[10 : 10 + height, 8 : 8 + width] = numbers
        expected = F.interpolate(torch.from_numpy(whole)[None, None], (40, 48), mode="nearest-exact")[0, 0].long()
        shown, target = found[number]
        assert torch.equal(target.long(), expected.flip(1) if flip else expected)
        colours = np.full((80, 96, 3), (1, 2, 3), np.float32)
        colours[10 : 10 + height, 8 : 8 + width] = image
        halves = F.avg_pool2d(torch.from_numpy(colours).permute(2, 0, 1), 2)
        inner = torch.zeros(40, 48, dtype=torch.bool)
        inner[5 : 5 + height // 2, 4 : 4 + width // 2] = True
        shown, inner = (shown.flip(2), inner) if flip else (shown, inner)
        assert torch.equal(shown[:, ~inner], halves[:, ~inner].to(torch.uint8))
        assert (shown[:, inner].float() - halves[:, inner]).abs().mean() < 8
    assert compared


def test_a_box_that_does_not_meet_the_image_shows_padding_alone(kind, roots):
    def crop(seed, epoch, samples, heights, widths, size):
        return View(np.stack([samples * 0 + 500] * 4, 1), np.zeros(len(samples), bool), size)

    _, found = views(crop, kind, roots)
    for image, target in found.values():
        assert (image == torch.tensor([1, 2, 3])[:, None, None]).all() and (target == IGNORE).all()


def test_both_loaders_show_the_same_masks_of_random_views(roots):
    crop = disc_task.Around(0.6)
    (mine, ours), (theirs, others) = (views(crop, kind, roots, "train") for kind in ("ffcv", "folder"))
    assert mine.classes == theirs.classes == disc_task.NAMES and len(ours) == COUNTS["train"]
    for sample, (image, target) in ours.items():
        assert torch.equal(target, others[sample][1]) and target.shape == (24, 40)
        assert (image.float() - others[sample][0].float()).abs().mean() < 8


def test_crops_of_a_form_have_it_and_of_squares_are_what_they_were():
    n = 4000
    heights, widths = np.full(n, 300), np.full(n, 400)
    for size in ((224, 224), (128, 256), (90, 30)):
        crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
        top, left, h, w = crop(0, 0, np.arange(n), heights, widths, size).boxes.T
        assert (top >= 0).all() and (left >= 0).all() and (top + h <= 300).all() and (left + w <= 400).all()
        ratio = w / h / (size[1] / size[0])
        assert 0.7 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.4
        (box,) = CentreCrop(1.0)(0, 0, np.arange(1), heights[:1], widths[:1], size).boxes.tolist()
        assert box == {224: [0, 50, 300, 300], 128: [50, 0, 200, 400], 90: [0, 150, 300, 100]}[size[0]]


def test_stock_ffcv_opens_a_file_with_masks(roots):
    from ffcv.fields import BytesField
    from ffcv.reader import Reader

    reader, file = Reader(str(roots["ffcv"] / "train.beton")), BetonFile(roots["ffcv"] / "train.beton")
    assert reader.field_names == ["image", "mask"] and isinstance(reader.handlers["mask"], BytesField)
    content = file.path.read_bytes()
    for number, mask in enumerate(reader.metadata["f1"]):
        kept = content[int(mask["ptr"]) : int(mask["ptr"]) + int(mask["size"])]
        assert kept == file.stored(number) and kept.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["ptr", "size"])
@pytest.mark.parametrize("both", [False, True], ids=["metadata", "metadata and table"])
def test_a_mask_that_lies_elsewhere_than_it_is_told_is_refused(roots, tmp_path, name, both):
    """Takes files without a seal, as stock FFCV writes them."""
    content = bytearray((roots["ffcv"] / "val.beton").read_bytes())
    header = np.frombuffer(content, HEADER, 1)
    count, kind = int(header["num_samples"][0]), SAMPLES[Field.BYTES]
    content[METADATA - FIELD["arguments"].itemsize : METADATA] = bytes(FIELD["arguments"].itemsize)
    (tmp_path / "whole.beton").write_bytes(content)
    assert len(BetonFile(tmp_path / "whole.beton")) == count
    metadata = np.frombuffer(content, kind, count, METADATA)
    table = np.frombuffer(content, ALLOCATION, 2 * count, int(header["alloc_table_ptr"][0]))
    place = np.flatnonzero(table["ptr"] == metadata["f1"]["ptr"][2])
    other = metadata["f1"]["ptr"][3] if name == "ptr" else 10**6
    metadata["f1"][name][2] = other
    if both:
        table[name][place] = other
    (tmp_path / "other.beton").write_bytes(content)
    with pytest.raises(UserError, match=r"other.beton: damaged: sample \d+: "):
        BetonFile(tmp_path / "other.beton")


def test_masks_are_scaled_with_their_images(images, tmp_path):
    prepare(disc_task.read_discs(images), tmp_path, Storage("raw", max_side=24), 1, False)
    file = BetonFile(tmp_path / "train.beton")
    for number in range(len(file)):
        stored = file.stored(number)
        whole = View(np.array([[0, 0, file.heights[number], file.widths[number]]]), np.zeros(1, bool), (24, 24))
        assert max(file.heights[number], file.widths[number]) == 24 and ClassMap().cut(stored, whole, 0).shape == (
            24,
            24,
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((30, 30), 7, np.uint8), "the map holds 7: expected 0 to 3, or 255"),
        (np.zeros((30, 31), np.uint8), "a map of 30 x 31 pixels: expected 30, as the image"),
    ],
)
def test_a_map_that_does_not_fit_its_image_or_classes_is_damaged(values, words):
    with pytest.raises(DamagedImage, match=words):
        ClassMap().read(values, 4, (30, 30))


def test_a_png_of_class_numbers_is_kept_as_it_is(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 4, (30, 40)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(png_of(numbers))
    assert ClassMap().read(tmp_path / "a.png", 4, (30, 40)) == png_of(numbers)
    other = ClassMap({3: 0, 0: 1}, ignore=2)
    with pytest.raises(DamagedImage, match="the map holds 1: expected 0, or 2 to 3"):
        other.read(numbers, 4, (30, 40))
    kept = other.read(np.array([[0, 3, 2]], np.uint8), 4, (1, 3))
    whole = View(np.array([[0, 0, 1, 3]]), np.zeros(1, bool), (1, 3))
    assert ClassMap().cut(kept, whole, 0).tolist() == [[1, 0, IGNORE]]


def test_a_task_refuses_data_of_another_kind_in_one_line(train, folders):
    with pytest.raises(UserError, match="a class number for each image: expected a map of"):
        train("run", f"data.root={folders}", "data.loader=folder")
    with pytest.raises(UserError, match="expected a class number for each image, for task"):
        train("run", "task={name: classification}", "model.name=resnet18")


def test_a_classifier_trains_on_rectangles_that_grow(train, kind, betons, folders):
    options = ["task={name: classification}", "model.name=shufflenet_v2_x0_5", "train.batch_size=48"]
    sizes = ["data.resolution=[32, 64]", "train.progressive.start_resolution=24"]
    run = train("run", f"data.root={betons if kind == 'ffcv' else folders}", *options, *sizes, kind=kind)
    assert [row["resolution"] for row in rows(run)] == [[24, 48], [32, 64]]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["resolution"], summary["eval_resolution"]) == ([32, 64], [32, 64])
    other = Summary.model_validate(summary | {"eval_resolution": [36, 72]})
    assert resolution(other) == "32 x 64 px, scored at 36 x 72 px"


@pytest.mark.parametrize("sides", ["[32, 48, 64]", "[]", "[0, 32]", "[32, 9000]", "32.5", "[32, true]"])
def test_a_size_that_is_none_is_refused_in_one_line(train, sides):
    with pytest.raises(UserError, match=r"data.resolution=.*: expected an integer from 1 to 8192, or two") as refusal:
        train("run", f"data.resolution={sides}")
    assert "\n" not in str(refusal.value)


def test_two_equal_sides_are_a_square(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    config = load_config(str(tmp_path / "recipe.yaml"), ["data.resolution=[32, 32]"])
    assert config.data.resolution == 32 and config.training_resolution.full == (32, 32)


def test_the_head_learns_at_a_rate_of_its_own():
    model = build_model("resnet18", 10, "en")
    keys = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "decay_on": "weights"}
    plain, own = (build_optimizer(model, **keys, head=["fc"], head_lr_factor=factor) for factor in (1.0, 10.0))
    assert len(plain.param_groups) == 2 and len(own.param_groups) == 4
    head = {id(p) for group in own.param_groups if group.get("lr_factor") == 10 for p in group["params"]}
    assert head == {id(p) for p in model.fc.parameters()}
    counted = [id(p) for group in own.param_groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for group in plain.param_groups for p in group["params"])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "mobilenet_v3_small", "timm/seresnet50"])
def test_the_head_of_a_classifier_has_its_classes(name):
    with torch.device("meta"):
        model = build_model(name, 7, "en")
        (head,) = Classification().head(model)
    assert model.get_submodule(head).weight.shape[0] == 7


def test_a_damaged_mask_is_named_and_stood_in_for(roots, images, tmp_path):
    root = shutil.copytree(images, tmp_path / "discs")
    (root / "train" / "003.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"003.jpg: .*003.png: the map: "):
        prepare(read_source(str(root)), tmp_path / "out", Storage(), 1, False)
    loader = LOADERS["folder"](root, "train", reading(batch_size=13))
    with pytest.raises(RunError, match=r"003.jpg: damaged: .*003.png: the map: "):
        list(loader.train_epoch(0, (24, 40)))
    loader.close()
    loader = LOADERS["folder"](root, "train", replace(reading(batch_size=13), skip_damaged=True))
    batches = list(loader.train_epoch(0, (24, 40)))
    loader.close()
    assert [line for batch in batches for line in batch.damaged] and all(3 not in batch.samples for batch in batches)


def test_a_task_of_masks_trains_is_killed_resumes_to_the_bit_and_is_scored_and_reported(
    kind, train, forked, tmp_path, roots, folders
):
    whole = train("whole", kind=kind)
    summary = json.loads((whole / "summary.json").read_text())
    first, last = rows(whole)
    assert (first["resolution"], last["resolution"]) == ([16, 28], [24, 40])
    assert last["iou"] == summary["details"]["iou"] and len(last["iou"]) == 4 and last["iou"][3] is None
    assert last["miou"] == pytest.approx(np.mean(last["iou"][:3]), abs=1e-5) and last["miou"] > 45
    child, killed = forked(lambda: train("killed", kind=kind)), tmp_path / "killed"
    deadline = time.monotonic() + 60
    while not list(killed.glob("checkpoints/step_00001_00000002.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    train("killed", "resume=auto", kind=kind)
    then, now = (checkpoint.load(run / "last.pt") for run in (whole, killed))
    assert all(torch.equal(value, now.model[name]) for name, value in then.model.items())
    assert [row["iou"] for row in rows(killed)] == [row["iou"] for row in rows(whole)]
    if kind == "ffcv":
        for ranks in (0, 2, 3):
            found = last_json(succeed("tests/disc_task.py", "eval.py", whole, "--at", "24x40", ranks=ranks))
            assert found["iou"] == last["iou"] and found["images"] == COUNTS["val"]
    write_report([str(whole)], tmp_path / "report")
    assert "| mIoU % |" in (tmp_path / "report" / "report.md").read_text()


def test_a_map_of_another_size_than_its_image_is_refused():
    kept = png_of(np.zeros((3, 5), np.uint8))
    ClassMap().check(kept, (3, 5))
    with pytest.raises(DamagedImage, match=r"^a map of 3 x 5 pixels: expected 5 x 3, as the image"):
        ClassMap().check(kept, (5, 3))


@pytest.mark.parametrize("sides", ["[]", "[48]", "[48, 48, 48]", "[48, 0]", "[48, 9000]", "48.0", "true", "[48, null]"])
def test_a_size_is_a_side_or_height_and_width(tmp_path, sides):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(
        UserError, match=r"data.resolution=.*: expected an integer from 1 to 8192, or two, height and w"
    ):
        load_config(str(tmp_path / "recipe.yaml"), [f"data.resolution={sides}"])
