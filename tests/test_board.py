"""TensorBoard's events of a run, read back with its own reader."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import succeed
from kill_loop import Case, Place, differences, line
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from en.build import build_network, build_to_device, open_loaders
from en.config.reading import load_config
from en.distributed.ranks import Ranks
from en.runs import checkpoint
from en.runs.board import is_by_layer
from en.runs.by_class import read_by_class
from en.runs.pictures import (
    ACCENT,
    DEEP,
    GREY,
    LEAST_WIDTH,
    LEFT,
    NUMBERED,
    PLOT_HEIGHT,
    TOP,
    confusion_map,
    over_layers,
    sheet,
)
from en.runs.position import Position
from en.training.epoch import to_network, train_epoch
from en.training.learner import build_learner
from en.training.record import EpochRecord

EVERYTHING = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [8, 8, 16, 16], stem_width: 8}}
norm: {name: en}
data: {root: unset, resolution: 32, workers: 1}
task: {rand_augment: 2, erasing: 0.5}
train: {epochs: 3, batch_size: 24, check_every: 3}
optim: {lr: 0.05}
checkpoint: {every_steps: 1, keep: 99}
device: cpu
"""
EPOCH_STEPS = 4  # 96 images


@pytest.fixture(scope="module")
def place(tmp_path_factory, betons):
    recipe = tmp_path_factory.mktemp("board") / "recipe.yaml"
    recipe.write_text(RECIPE)
    return Place(recipe, {"ffcv": betons})


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """A run of three epochs on two ranks."""
    run = tmp_path_factory.mktemp("runs") / "run"
    succeed("train.py", *line(place, Case("ffcv", 0), run)[2:], ranks=2)
    return run


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    events.Reload()
    return events


def lines(run: Path, name: str) -> list[dict]:
    return [json.loads(text) for text in (run / name).read_text().splitlines()]


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (abs(picture - colour) < 12).all(2)


def test_ratios_are_a_curve_a_histogram_and_a_picture_for_each_normalizer(run):
    events, shares = events_of(run), [row["ratios"] for row in lines(run, "ratios.jsonl")]
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("ratios/")} == {
        "ratios/bn",
        "ratios/in",
        "ratios/ln",
    }
    for kind in ("bn", "in", "ln"):
        own = [[layer[kind] for layer in row.values() if layer[kind]] for row in shares]
        assert len(own[0]) == (15 if kind != "in" else 3)  # maps of 8 x 8 and less leave `in` out
        assert [(each.step, each.value) for each in events.Scalars(f"ratios/{kind}")] == [
            (epoch, pytest.approx(np.mean(values))) for epoch, values in enumerate(own, 1)
        ]
        found = events.Histograms(f"ratios/{kind}_of_layers")
        assert [each.step for each in found] == [1, 2, 3]
        for each, values in zip(found, own, strict=True):
            counts, edges = np.histogram(values, 20, (0, 1))
            told = each.histogram_value
            assert (told.num, told.min, told.max) == (len(values), min(values), max(values))
            assert told.bucket == counts.tolist() and told.bucket_limit == pytest.approx(edges[1:])
        drawn = events.Images(f"ratios/{kind}_by_layer")
        assert [each.step for each in drawn] == [1, 2, 3]
        assert drawn[-1].encoded_image_string == over_layers(kind, "epoch 3", shares[2], shares[:2])


def test_a_layer_that_leaves_a_normalizer_out_is_hatched_and_no_line_crosses_it(run):
    shares = lines(run, "ratios.jsonl")[-1]["ratios"]
    picture = pixels(over_layers("in", "epoch 3", shares, []))
    step, last = LEAST_WIDTH / 15, TOP + PLOT_HEIGHT
    for place, own in enumerate(shares.values()):
        left, right = round(LEFT + place * step) + 1, round(LEFT + (place + 1) * step) - 1
        column = picture[TOP:last, left:right]
        assert near(column, ACCENT).any() == bool(own["in"]) and near(column, GREY).any() == (not own["in"])
    zeros = {name: {"bn": 1.0, "in": 0.0} for name in shares}
    assert not near(pixels(over_layers("in", "epoch 3", zeros, [])), ACCENT).any()


def test_what_is_no_table_of_layers_and_kinds_stays_a_card_a_number():
    assert is_by_layer({"bn1": {"bn": 0.5, "in": 0.5}})
    assert not is_by_layer({}) and not is_by_layer({"share": 0.5}) and not is_by_layer({"a": {"b": {"c": 0.5}}})


def test_images_are_those_of_the_first_batch_of_each_epoch_as_the_network_saw_them(run, place):
    drawn = events_of(run).Images("train/images")
    config = load_config(str(place.recipe), [f"data.root={place.data['ffcv']}"])
    loader = open_loaders(config, Ranks(0, 2, 0, 2), ("train",))["train"]
    to_device = build_to_device(config, torch.device("cpu"))
    for epoch, event in enumerate(drawn):
        batch = next(iter(loader.train_epoch(epoch, (32, 32))))
        images, _ = to_network(config, loader, to_device, batch, epoch)
        assert event.step == epoch + 1 and event.encoded_image_string == sheet(to_device.pixels(images).numpy())
    assert len(drawn) == 3 and (event.width, event.height) == (8 * 34 - 2, 2 * 34 - 2)
    loader.close()


def test_images_as_the_network_takes_them_become_the_same_bytes_again(place):
    to_device = build_to_device(load_config(str(place.recipe), []), torch.device("cpu"))
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(to_device.pixels(to_device.normalize(every)), every)


def test_keeping_images_changes_no_bit_of_training(place):
    options = [f"data.root={place.data['ffcv']}", "task.mixup=0.2", "model.dropout=0.2"]
    config, cpu, alone = load_config(str(place.recipe), options), torch.device("cpu"), Ranks(0, 1, 0, 1)
    trained = []
    for keeps in (False, True):
        loader = open_loaders(config, alone, ("train",))["train"]
        torch.manual_seed(0)
        learner = build_learner(config, build_network(config, len(loader.classes)), cpu, alone)
        record = EpochRecord(cpu, keeps_images=keeps)
        steps = train_epoch(config, learner, loader, build_to_device(config, cpu), record, Position(), alone)
        points = [record.recent_loss(alone) for done in steps if keeps or done.step == EPOCH_STEPS]
        trained.append((learner.model.state_dict(), record.mean_loss(alone)))
        assert len(points) == (EPOCH_STEPS if keeps else 1) and (record.images is not None) == keeps
        loader.close()
    (before, loss), (after, same_loss) = trained
    assert loss == same_loss and all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_confusion_of_each_epoch_is_a_picture(run):
    drawn, found = events_of(run).Images("val/confusion"), read_by_class(run / "evaluation" / "last")
    assert [each.step for each in drawn] == [1, 2, 3]
    assert drawn[-1].encoded_image_string == confusion_map(found.confusion, found.classes, "epoch 3")


@pytest.mark.parametrize("classes", [2, NUMBERED, 40, 41, 1000, 1500])
def test_a_confusion_of_any_number_of_classes_shows_its_diagonal_and_what_is_not_there(classes):
    table = 10 * np.eye(classes, dtype=np.int64)
    table[1] = 0
    picture = pixels(confusion_map(table, [f"class {number}" for number in range(classes)], "epoch 1"))
    assert picture.shape[0] < 1000 and picture.shape[1] < 1000
    assert near(picture, DEEP).any() and near(picture, GREY).any()


def test_loss_by_step_is_the_mean_of_the_steps_since_the_point_before(run, place, tmp_path):
    found = events_of(run / "by_step").Scalars("train/loss_by_step")
    assert [each.step for each in found] == [3, 4, 7, 8, 11, 12]  # every third step of an epoch, and its last
    logged = [row["train_loss"] for row in lines(run, "log.jsonl")]
    for epoch, loss in enumerate(logged):
        first, second = (each.value for each in found[2 * epoch : 2 * epoch + 2])
        assert (3 * first + second) / 4 == pytest.approx(loss, rel=1e-5)
    fine = tmp_path / "fine"
    succeed("train.py", *line(place, Case("ffcv", 0), fine, "train.check_every=1")[2:], ranks=2)
    each = [event.value for event in events_of(fine / "by_step").Scalars("train/loss_by_step")]
    assert len(each) == 12 and sum(each[:3]) / 3 == pytest.approx(found[0].value, rel=1e-5)


def test_only_the_first_rank_writes_events(run):
    assert [len([*folder.glob("events.out.tfevents.*")]) for folder in (run, run / "by_step")] == [1, 1]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_resumes_within_an_epoch_has_no_event_twice_and_none_less(run, place, tmp_path, step):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    path = again / "checkpoints" / f"step_{step // EPOCH_STEPS:05d}_{step % EPOCH_STEPS:08d}.pt"
    more = ["--resume", str(path), "--drop-later"]
    succeed("train.py", *line(place, Case("ffcv", 0), again, *more)[2:], ranks=2)
    assert differences(run, again) == []
    assert len([*again.glob("events.out.tfevents.*")]) == 2


@pytest.mark.parametrize("ranks", [0, 3])
def test_the_next_point_covers_the_same_steps_on_another_number_of_ranks(run, place, tmp_path, ranks):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    path = again / "checkpoints" / "step_00001_00000001.pt"
    more = ["--resume", str(path), "--drop-later"]
    succeed("train.py", *line(place, Case("ffcv", 0), again, *more)[2:], ranks=ranks)
    whole, broken = (events_of(each / "by_step").Scalars("train/loss_by_step") for each in (run, again))
    assert [each.step for each in broken] == [each.step for each in whole]
    # Up to the point after the checkpoint; from there on the sizes of the ranks' batches are others.
    assert [each.value for each in broken][:3] == pytest.approx([each.value for each in whole][:3], rel=0.02)
    first, second = (events_of(each).Images("train/images")[1].encoded_image_string for each in (run, again))
    assert first == second  # of the batch before the checkpoint, which holds it


def test_checkpoints_hold_the_images_of_the_first_rank_alone_and_few_of_them(run):
    saved = checkpoint.load(run / "checkpoints" / "step_00000_00000001.pt")
    assert saved.ranks[0]["losses"]["images"].shape == (12, 3, 32, 32) and "images" not in saved.ranks[1]["losses"]
