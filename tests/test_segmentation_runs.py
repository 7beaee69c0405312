"""Runs that label pixels: scores by an independent program, ranks, kills, and a backbone from a run that classified."""

import csv
import json
import random
import shutil

import kill_loop
import numpy as np
import pytest
import torch
import torchvision
from commands import command, last_json, refused, succeed
from kill_loop import Case, Place, differences
from PIL import Image
from report_runs import report, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from en.data.targets import IGNORE
from en.distributed.ranks import Ranks
from en.evaluation.trained import open_trained
from en.runs import checkpoint
from en.runs.by_class import read_by_class
from en.runs.position import Position

NAMES = ["ground", "disc", "bar", "never"]
BACKBONE = "channels: [16, 32, 64, 128], stem_width: 8"
RECIPE = f"""
model: {{name: timm/resnet10t, options: {{{BACKBONE}, head: psp, head_channels: 16}}}}
norm: {{name: en}}
task: {{name: segmentation, most_of_class: 0.9}}
data: {{root: unset, loader: folder, resolution: [32, 40], workers: 1}}
train: {{epochs: 3, batch_size: 6, ema_decay: 0.9}}
optim: {{lr: 0.02, head_lr_factor: 2.0}}
schedule: {{name: polynomial, power: 0.9}}
checkpoint: {{every_steps: 1, keep: 2}}
device: cpu
"""
CLASSIFIER = f"""
model: {{name: timm/resnet10t, options: {{{BACKBONE}}}}}
norm: {{name: en}}
data: {{root: unset, resolution: 48, workers: 1}}
train: {{epochs: 1, batch_size: 24}}
optim: {{lr: 0.01}}
device: cpu
"""


def write_pairs(root):
    """Images of odd sizes with a disc or a bar; of the last class none; one image of each split does not count."""
    draws = np.random.default_rng(0)
    for split, count in {"train": 18, "val": 11}.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            height, width = draws.integers(33, 70, 2)
            y, x = np.mgrid[:height, :width]
            shapes = [np.hypot(y - height / 2, x - width / 2) < 11, abs(x - width / 3) < 6]
            mask = np.where(shapes[number % 2], 1 + number % 2, 0).astype(np.uint8)
            pixels = np.array([(90, 90, 90), (230, 40, 40), (40, 40, 230)])[mask]
            pixels = np.clip(pixels + draws.normal(0, 15, pixels.shape), 0, 255).astype(np.uint8)
            mask[: number % 5] = IGNORE
            if number == 3:
                mask[:] = IGNORE
            Image.fromarray(pixels).save(root / "images" / split / f"{number:02}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number:02}.png")
    lines = [f"{number} {name}" for number, name in enumerate(NAMES)]
    (root / "classes.txt").write_text("\n".join([*lines, f"{IGNORE} ignore"]) + "\n")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs")
    write_pairs(path)
    (path / "recipe.yaml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    succeed("train.py", labelled / "recipe.yaml", f"data.root={labelled}", f"run_dir={path}")
    return path


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def scores_of_files(folder, masks):
    """Scores of predictions that were saved as pictures, from the masks' own files, by sets of pixels."""
    names = sorted(path.name for path in folder.glob("*.png"))
    ours, theirs = (np.concatenate([pixels_of(place / name).ravel() for name in names]) for place in (folder, masks))
    ours, theirs = ours[theirs != 255], theirs[theirs != 255]
    present = [number for number in range(len(NAMES)) if ((ours == number) | (theirs == number)).any()]
    ious = [((ours == n) & (theirs == n)).sum() / ((ours == n) | (theirs == n)).sum() for n in present]
    recalls = [(ours[theirs == n] == n).mean() for n in present if (theirs == n).any()]
    scores = {"miou": 100 * np.mean(ious), "macc": 100 * np.mean(recalls), "aacc": 100 * np.mean(ours == theirs)}
    return scores | {"classes_found": len(present)}


@pytest.mark.filterwarnings("ignore:en, sn or ssn is evaluated on maps")  # of images larger than the crops
@pytest.mark.slow(reason="a run, and its evaluation on 1, 2 and 3 ranks")
def test_scores_are_those_of_the_saved_predictions_on_any_number_of_ranks(run, labelled, tmp_path):
    trained = open_trained(str(run), [], Ranks.from_environment(), ("val",))
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (trained.config.data.mean, trained.config.data.std)
    )
    loader, network = trained.loaders["val"], trained.model.eval()
    names = sorted(path.name for path in (labelled / "images" / "val").iterdir())
    with torch.inference_mode():
        for batch in loader.eval_epoch(None):
            assert len(batch.images) == 1
            found = trained.config.task.predict(network, (batch.images.float() - mean) / std)
            name = names[int(batch.samples[0])]
            assert found.shape[1:] == pixels_of(labelled / "masks" / "val" / name).shape
            Image.fromarray(found[0].numpy()).save(tmp_path / name)
    trained.close()
    expected = scores_of_files(tmp_path, labelled / "masks" / "val")
    assert expected["classes_found"] < len(NAMES)
    whole = last_json(succeed("eval.py", run))
    assert {name: whole[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert whole["iou"][3] is None and whole["images"] == 11 and sum(whole["labelled"]) == sum(whole["predicted"])
    assert whole["protocol"]["name"] == "ours" and whole["protocol"]["absent"] == "left_out"
    for ranks in (2, 3):
        assert last_json(succeed("eval.py", run, ranks=ranks)) == whole


@pytest.mark.filterwarnings("ignore:en, sn or ssn is evaluated on maps")
def test_what_a_run_counted_and_drew_is_the_same_on_any_number_of_ranks_and_by_both_loaders(run, labelled, tmp_path):
    kept = {path.name: path.read_bytes() for path in (run / "evaluation" / "last").iterdir()}
    assert sorted(kept) == ["classes.json", *(f"sample_{n:06}.jpg" for n in (1, 4, 6, 9))]
    succeed("scripts/prepare_data.py", labelled, tmp_path / "prepared", "--workers", 1)
    ffcv = ["data.loader=ffcv", f"data.root={tmp_path / 'prepared'}"]
    for ranks, options in ((2, []), (3, ffcv)):
        out = tmp_path / f"{ranks}"
        succeed("tests/evaluate_worker.py", run, out, *options, ranks=ranks)
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "scores.json"} == kept
    found = read_by_class(run / "evaluation" / "last")
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert found.labelled.tolist() == row["labelled"] and found.confusion.sum(0).tolist() == row["predicted"]
    assert found.overlap[:3].tolist() == pytest.approx(row["iou"][:3], abs=1e-6) and np.isnan(found.overlap[3])
    assert found.classes == NAMES and found.counted == "pixels" and found.trained is None


def test_tensorboard_shows_samples_classes_and_confusions_of_each_evaluation(run):
    events = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    drawn = {path.name: path.read_bytes() for path in (run / "evaluation" / "last").glob("*.jpg")}
    for sample in (1, 4, 6, 9):
        shown = events.Images(f"val/sample_{sample}")
        assert [event.step for event in shown] == [1, 2, 3]
        assert shown[-1].encoded_image_string == drawn[f"sample_{sample:06}.jpg"]
    (text,) = events.Tensors("val/classes")[-1].tensor_proto.string_val
    assert "mean of 3 of 4 classes" in text.decode() and "| never | - | - | 0 | 0.00 |" in text.decode()
    assert b"| is | was taken for |" in events.Tensors("val/confused")[-1].tensor_proto.string_val[0]


def test_a_report_shows_the_classes_confusions_and_samples_of_a_run(run, tmp_path):
    text = report([str(run)], tmp_path / "out")
    found = read_by_class(run / "evaluation" / "last")
    rows = {row["class"]: row for row in table(tmp_path / "out", "by_class")}
    assert [float(rows[name]["IoU % of en"]) for name in NAMES[:3]] == pytest.approx(found.overlap[:3].tolist())
    assert rows["never"]["IoU % of en"] == "" and rows["never"]["pixels"] == "0"
    assert "Means are over 3 of 4 classes: not labelled or predicted: never." in text
    photos = sorted(path.name for path in (tmp_path / "out" / "figures").glob("*.jpg"))
    assert photos == [f"sample_1_{sample}.jpg" for sample in (1, 4, 6, 9)]
    assert all(f"(figures/{name})" in text for name in photos) and "(figures/confusion_1.svg)" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4
    assert all(f"figures/{name}\n" in (tmp_path / "out" / "files.sha256").read_text() for name in photos)


@pytest.mark.filterwarnings("ignore:en, sn or ssn is evaluated on maps")
def test_ratios_of_each_layer_that_labels_are_logged_looked_at_and_reported(run, tmp_path):
    shares = [json.loads(line)["ratios"] for line in (run / "ratios.jsonl").read_text().splitlines()]
    assert len(shares) == 3 and not any(name.startswith("aux") for row in shares for name in row)
    assert all(sum(kinds.values()) == pytest.approx(1, abs=1e-5) for row in shares for kinds in row.values())
    succeed("scripts/ratios.py", run)
    try:
        with (run / "ratios" / "layers.csv").open(newline="") as file:
            looked = {(row["layer"], row["normalizer"]): float(row["mean"]) for row in csv.DictReader(file)}
        logged = {(layer, kind): share for layer, kinds in shares[-1].items() for kind, share in kinds.items()}
        # Whole images, each at its own size, as they were seen in the run's evaluation.
        assert looked.keys() == logged.keys()
        assert [*looked.values()] == pytest.approx([logged[key] for key in looked], abs=1e-5)
        assert "by layer" in report([str(run)], tmp_path / "out") and table(tmp_path / "out", "ratios_1")
    finally:
        shutil.rmtree(run / "ratios")


def test_several_protocols_are_scored_by_one_command_and_an_unknown_one_is_refused(run):
    done = succeed("eval.py", run, "--protocol", "ours", "ours_ms", "snseg", "task.data_set=ade20k")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [scores["protocol"]["name"] for scores in found] == ["ours", "ours_ms", "snseg"]
    assert [scores["protocol"]["absent"] for scores in found] == ["left_out", "left_out", "zero"]
    assert found[0]["miou"] != found[1]["miou"]
    assert "task.protocol='mmsegg': expected" in refused(command("eval.py", run, "--protocol", "mmsegg"))
    assert "expected data_set=ade20k" in refused(command("eval.py", run, "--protocol", "snseg"))


def test_a_run_shows_its_protocol_and_keeps_each_class_s_score(run):
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert len(row["iou"]) == len(NAMES) and row["iou"][3] is None and row["miou"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["score"] == "miou" and summary["task"] == "segmentation"


@pytest.mark.parametrize("case", [Case("folder", 0), Case("folder", 2, ["train.accumulation=3"])], ids=str)
def test_a_killed_run_ends_bit_for_bit_as_the_untouched_one(labelled, tmp_path, case):
    place = Place(labelled / "recipe.yaml", {"folder": labelled})
    kill_loop.run_untouched(place, case, tmp_path / "whole")
    kills = 1 if case.ranks else 2
    assert kill_loop.run_killed(place, case, tmp_path / "run", random.Random(str(case)), kills) == kills
    assert differences(tmp_path / "whole", tmp_path / "run") == []


WAYS = {"one": (0, 1), "micro": (0, 6), "ranks": (3, 1)}


@pytest.mark.parametrize(
    ("norm", "ways"), [("{name: gn}", WAYS), ("{name: en, sync: true}", ("one", "ranks"))], ids=["gn", "en with sync"]
)
def test_pixels_are_averaged_over_the_whole_step_on_any_number_of_ranks_and_micro_batches(
    labelled, tmp_path, norm, ways
):
    for name in ways:
        ranks, micro_batches = WAYS[name]
        options = [f"norm={norm}", "train.epochs=1", f"train.accumulation={micro_batches}", "train.ema_decay=null"]
        places = [f"data.root={labelled}", f"run_dir={tmp_path / name}", "checkpoint.keep=9"]
        # Dropout draws other numbers where batches are parted otherwise.
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(RECIPE.replace("head: psp,", "head: psp, head_dropout: 0.0,"))
        succeed("train.py", recipe, *options, *places, ranks=ranks)
    one, *others = (checkpoint.load(checkpoint.step_path(tmp_path / name, Position(step=1))) for name in ways)
    for other in others:
        for key, value in one.model.items():
            torch.testing.assert_close(other.model[key], value, rtol=1e-4, atol=1e-5)
        losses = [rank["losses"]["sum"] for rank in other.ranks]
        assert sum(losses) / len(losses) == pytest.approx(one.ranks[0]["losses"]["sum"], rel=1e-5)


def run_on(labelled, tmp_path, recipe, init, *options):
    """Trains an epoch from weights. Returns: the command's end, and the run's folder."""
    (tmp_path / "then.yaml").write_text(recipe)
    places = [f"data.root={labelled}", f"run_dir={tmp_path / 'then'}", f"init={init}"]
    return command("train.py", tmp_path / "then.yaml", *places, "train.epochs=1", *options), tmp_path / "then"


def check_backbone(run, theirs, compared):
    """Looks whether a run with a frozen backbone began, and ended, with the weights of a classifier there."""
    facts = json.loads((run / "provenance.json").read_text())["starts"][0]["init"]
    assert facts["dropped"] == ["fc.weight", "fc.bias"] and len(facts["taken"]) == len(theirs) - 2
    assert {name.split(".")[0] for name in facts["taken"]} == {"backbone"}
    assert {name.split(".")[0] for name in facts["fresh"]} == {"classifier", "aux_classifier"}
    ours = checkpoint.load(run / "last.pt").model
    for name in compared:
        assert torch.equal(ours[f"backbone.{name}"], theirs[name]), name


@pytest.mark.parametrize(
    ("before", "after"), [("en", "en"), ("bn", "en, start: bn"), ("bn", "bn")], ids=["en", "en from bn", "bn"]
)
def test_a_backbone_begins_with_the_weights_of_a_run_that_classified(betons, labelled, tmp_path, before, after):
    (tmp_path / "first.yaml").write_text(CLASSIFIER.replace("{name: en}", f"{{name: {before}}}"))
    succeed("train.py", tmp_path / "first.yaml", f"data.root={betons}", f"run_dir={tmp_path / 'first'}")
    recipe = RECIPE.replace("{name: en}", f"{{name: {after}}}")
    done, run = run_on(labelled, tmp_path, recipe, tmp_path / "first", "train.freeze=[backbone]")
    assert done.returncode == 0, done.stderr
    theirs = checkpoint.load(tmp_path / "first" / "last.pt").model
    all_of_it = theirs.keys() - {"fc.weight", "fc.bias"}
    check_backbone(run, theirs, all_of_it if before == after else ["conv1.0.weight", "layer1.0.bn1.running_mean"])
    other = ["model.options.channels=[16, 32, 64, 64]", f"run_dir={tmp_path / 'other'}"]
    done = run_on(labelled, tmp_path, recipe, tmp_path / "first", *other)[0]
    assert "first: layer4.0." in refused(done) and "has shape (128" in refused(done)


def test_a_file_of_torchvision_s_begins_the_backbone_of_its_dilated_network(labelled, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(width_per_group=4).state_dict()
    torch.save(theirs, tmp_path / "resnet50.pth")
    recipe = RECIPE.replace("{name: en}", "{name: bn}")
    recipe = recipe.replace("timm/resnet10t", "fcn_resnet50").replace(f"{BACKBONE}, head: psp", "width_per_group: 4")
    options = ["train.freeze=[backbone]", "train.ema_decay=null"]
    done, run = run_on(labelled, tmp_path, recipe, tmp_path / "resnet50.pth", *options)
    assert done.returncode == 0, done.stderr
    check_backbone(run, theirs, theirs.keys() - {"fc.weight", "fc.bias"})
    torch.save(theirs | {"fc2.weight": theirs["fc.weight"]}, tmp_path / "more.pth")
    other = run_on(labelled, tmp_path, recipe, tmp_path / "more.pth", f"run_dir={tmp_path / 'other'}")[0]
    assert "fc2.weight: no such parameter or buffer" in refused(other)
