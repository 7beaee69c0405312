"""Compares counts by class with numpy's on logits that were kept, on any number of ranks, and in a report."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from commands import last_json, succeed
from report_runs import report, run, table

from en.build import build_to_device
from en.data.palette import varied
from en.data.targets import IGNORE
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.evaluation.examples import SAMPLES, chosen
from en.evaluation.trained import open_trained
from en.runs.by_class import FILE, ByClass, Entries, Findings, drop_later, read_by_class
from en.runs.class_lines import texts
from en.tasks.by_class import BINS, MOST, SURE, Calibration, class_metrics
from en.tasks.classification import Classification
from en.tasks.drawing import GAP, LINE, SIDE, STRIPES, WRONG, draw_maps

RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: bn}
data: {root: unset, loader: folder, resolution: 48, workers: 1}
train: {epochs: 2, batch_size: 18}
optim: {lr: 0.02}
device: cpu
"""
KEPT = {"train": [24, 22, 9, 3], "val": [5, 4, 2, 0]}  # images of each class


@pytest.fixture(scope="module")
def uneven(folders, tmp_path_factory):
    """Class folders with unequal numbers of images, and of the last class none in val."""
    root = tmp_path_factory.mktemp("uneven") / "clothes"
    shutil.copytree(folders, root)
    for split, counts in KEPT.items():
        for folder, count in zip(sorted((root / split).iterdir()), counts, strict=True):
            for path in sorted(folder.iterdir())[count:]:
                path.unlink()
    return root


@pytest.fixture(scope="module")
def classified(uneven, tmp_path_factory):
    path = tmp_path_factory.mktemp("classified")
    (path / "recipe.yaml").write_text(RECIPE)
    succeed("train.py", path / "recipe.yaml", f"data.root={uneven}", f"run_dir={path / 'run'}")
    return path / "run"


def logits_of(run):
    """The network's logits of each image of val, one at a time, and their classes."""
    trained = open_trained(str(run), ["train.batch_size=1"], Ranks.from_environment(), ("val",))
    to_device, network = build_to_device(trained.config, torch.device("cpu")), trained.model.eval()
    with torch.inference_mode():
        pairs = [
            (network(to_device(batch.images, batch.targets)[0])[0].double().numpy(), int(batch.targets[0]))
            for batch in trained.loaders["val"].eval_epoch(trained.config.shown_size)
        ]
    trained.close()
    logits, targets = zip(*pairs, strict=True)
    return np.array(logits), np.array(targets)


def error_of_calibration(logits, targets):
    """The expected calibration error, %, image by image, in float64."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    confidences = (shares / shares.sum(1, keepdims=True)).max(1)
    bins: dict[int, list[tuple[bool, float]]] = {}
    for row, (target, sure) in enumerate(zip(targets, confidences, strict=True)):
        bins.setdefault(math.ceil(sure * 15), []).append((logits[row].argmax() == target, sure))
    gaps = [abs(sum(right for right, _ in own) - sum(sure for _, sure in own)) for own in bins.values()]
    return 100 * sum(gaps) / len(targets)


def of_run(run):
    found = read_by_class(run / "evaluation" / "last")
    assert found is not None
    return found


def test_counts_of_a_run_are_those_of_its_logits_and_its_training_images_are_told(classified):
    logits, targets = logits_of(classified)
    found, summary = of_run(classified), json.loads((classified / "summary.json").read_text())
    expected = np.zeros((4, 4), int)
    for target, guess in zip(targets, logits.argmax(1), strict=True):
        expected[target, guess] += 1
    assert np.array_equal(found.confusion, expected) and found.labelled.tolist() == KEPT["val"]
    assert found.trained == KEPT["train"] and found.counted == "images"
    recalls = [expected[n, n] / KEPT["val"][n] for n in range(3)]
    assert summary["scores"]["macro_top1"] == pytest.approx(100 * np.mean(recalls), abs=1e-6)
    assert summary["scores"]["ece"] == pytest.approx(error_of_calibration(logits, targets), abs=1e-4)
    assert np.isnan(found.accuracy[3]) and found.overlap is None
    assert not list((classified / "evaluation" / "last").glob("*.jpg"))


def test_counts_and_scores_are_the_same_on_any_number_of_ranks(classified, tmp_path):
    def kept(ranks):
        out = tmp_path / str(ranks)
        # Batches of one on every rank: those of other sizes may give other last bits.
        succeed("tests/evaluate_worker.py", classified, out, f"train.batch_size={max(1, ranks)}", ranks=ranks)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    one = kept(0)
    assert set(one) == {FILE, "scores.json"} and "macro_top1" in json.loads(one["scores.json"])
    assert kept(2) == one and kept(3) == one


def test_the_command_says_the_mean_over_classes_and_the_calibration(classified):
    whole = last_json(succeed("eval.py", classified))
    assert {"top1", "macro_top1", "loss", "ece", "images"} == set(whole)


def test_a_report_shows_means_over_classes_the_worst_ones_and_those_of_few_images(classified, tmp_path):
    text = report([str(classified)], tmp_path / "out")
    found = of_run(classified)
    (row,) = table(tmp_path / "out", "classes")
    accuracy = 100 * found.confusion.diagonal()[:3] / np.array(KEPT["val"][:3])
    assert float(row["mean top-1 %"]) == pytest.approx(accuracy.mean())
    assert float(row["worst tenth %"]) == pytest.approx(accuracy.min()) and row["of classes"] == "3 of 4"
    assert float(row["medium (20 to 100) %"]) == pytest.approx(accuracy[:2].mean())
    assert float(row["few (< 20) %"]) == pytest.approx(accuracy[2]) and "many (> 100) %" not in row
    assert "ECE %" in row and f"Means are over 3 of 4 classes: not labelled: {found.classes[3]}." in text
    rows = table(tmp_path / "out", "by_class")
    assert rows[-1]["class"] == found.classes[3] and rows[-1]["top-1 % of bn"] == ""
    assert {each["class"]: each["training images"] for each in rows} == dict(
        zip(found.classes, map(str, KEPT["train"]), strict=True)
    )
    pairs = {(each["is"], each["was taken for"]): int(float(each["images a run"]))
             for each in table(tmp_path / "out", "confused")}  # fmt: skip
    off = found.confusion - np.diag(found.confusion.diagonal())
    assert pairs == {(found.classes[t], found.classes[p]): off[t, p] for t, p in zip(*np.nonzero(off), strict=True)}
    assert "macro top-1 %" in table(tmp_path / "out", "measured")[0]


def compute(metrics, outputs, targets, parts=1):
    for rows in np.array_split(np.random.default_rng(parts).permutation(len(targets)), parts):
        for metric in metrics.values():
            metric.update(outputs[rows], targets[rows])
    found = {}
    for name, metric in metrics.items():
        value = metric.compute()
        found |= value if isinstance(value, dict) else {name: value}
    return found


@pytest.mark.parametrize("classes", [2, 7, 300])
def test_counts_are_those_of_numpy_in_any_order_and_parts(classes):
    draws = np.random.default_rng(classes)
    logits = draws.normal(0, 3, (500, classes)).astype(np.float32)
    logits[:9] = 0  # ties
    logits[9:40, 1] += 400  # a confidence of exactly 1
    targets = draws.integers(0, classes, 500)
    outputs, numbers = torch.from_numpy(logits), torch.from_numpy(targets)
    whole = compute(class_metrics(classes), outputs, numbers)
    pieces = compute(class_metrics(classes), outputs, numbers, parts=7)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    guess = logits.argmax(1)
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (targets, guess), 1)
    assert np.array_equal(whole["confusion"], expected)
    assert np.array_equal(whole["hits"], np.stack([expected.sum(1), expected.diagonal()], 1))
    assert float(whole["ece"]) == pytest.approx(error_of_calibration(logits.astype(float), targets), abs=1e-5)
    assert whole["calibration"].sum(0)[:2].tolist() == [500, int((guess == targets).sum())]
    assert int(whole["calibration"][-1, 0]) >= 31 and len(whole["calibration"]) == BINS


def test_a_confidence_belongs_to_the_bin_that_it_ends_and_a_whole_one_to_the_last():
    confidences = torch.tensor([0.1, 0.4, 0.5, 0.75, 1.0]).double()
    rest = ((1 - confidences) / 15).clamp(min=1e-300)
    logits = torch.cat([confidences[:, None], rest[:, None].expand(-1, 15)], 1).log()
    calibration = Calibration()
    calibration.update(logits, torch.zeros(5, dtype=torch.int64))
    counts = calibration.compute()["calibration"]
    # 6/15 in parts of SURE, rounded, lies below the end of its bin.
    assert counts[:, 0].nonzero()[:, 0].tolist() == [1, 5, 7, 11, 14]
    assert counts[14].tolist() == [1, 1, SURE] and counts[7].tolist() == [1, 1, SURE // 2]


def test_equal_numbers_of_images_need_no_mean_over_classes_and_many_classes_no_pairs():
    outputs = torch.eye(6).repeat(2, 1)
    found = compute(class_metrics(6), outputs, torch.arange(6).repeat(2))
    assert "macro_top1" not in found and float(found["ece"]) > 0
    assert "confusion" not in class_metrics(MOST + 1) and "confusion" in class_metrics(MOST)
    assert {"hits", "calibration", "confusion"} <= {str(name) for name in Classification().metrics(6)}


def by_class(**changes):
    counts = {"confusion": Entries.of(np.array([[3, 1], [0, 0]]))}
    content = {"epoch": 2, "task": "segmentation", "counted": "pixels", "classes": ["a|b", "c"], "counts": counts}
    return ByClass(**content | changes)


def test_what_is_kept_is_read_again_and_what_is_damaged_is_named(tmp_path):
    found = by_class(trained=[4, 5])
    Findings(found, {7: b"jpeg"}).write(tmp_path / "last")
    (tmp_path / "last" / "sample_000001.jpg").write_text("of another choice")
    Findings(found, {7: b"jpeg"}).write(tmp_path / "last")
    assert {path.name for path in (tmp_path / "last").iterdir()} == {FILE, "sample_000007.jpg"}
    read = read_by_class(tmp_path / "last")
    assert read.model_dump() == found.model_dump() and np.array_equal(read.confusion, found.confusion)
    assert read_by_class(tmp_path) is None
    content = json.loads((tmp_path / "last" / FILE).read_text())
    content["counts"]["confusion"]["entries"].append([0, 2, 1])
    for text, words in (
        ("{", "Invalid JSON"),
        (json.dumps(content), "counts.confusion.*: expected entries of a table of 2 x 2"),
        (json.dumps(content | {"classes": ["a"], "counts": {}, "trained": [1, 2]}), "trained: expected 1 numbers"),
    ):
        (tmp_path / "last" / FILE).write_text(text)
        with pytest.raises(UserError, match=f"{FILE}: .*{words}"):
            read_by_class(tmp_path / "last")


def test_what_is_of_later_epochs_is_dropped_and_the_rest_kept(tmp_path):
    for name, epoch in (("last", 3), ("best", 2)):
        Findings(by_class(epoch=epoch), {}).write(tmp_path / "evaluation" / name)
    drop_later(tmp_path, 2)
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["best"]


def test_counts_of_another_evaluation_than_the_last_are_left_out_of_a_report(tmp_path, capsys):
    path = tmp_path / "en"
    run(path)
    Findings(by_class(epoch=99), {}).write(path / "evaluation" / "last")
    assert "Classes" not in report([str(path)], tmp_path / "out")
    assert "of epoch 99: expected epoch 100, the last one by summary.json: left out" in capsys.readouterr().err
    (path / "evaluation" / "last" / FILE).write_text("{}")
    assert "Classes" not in report([str(path)], tmp_path / "out")
    assert "left out" in capsys.readouterr().err


def test_texts_name_absent_classes_and_show_names_letter_for_letter():
    said = texts(by_class())
    assert "| a&#124;b | 75.00 | 75.00 | 4 | 100.00 |" in said["val/classes"]
    assert "| c | 0.00 | - | 0 | 0.00 |" in said["val/classes"] and "mean of 2 of 2 classes" in said["val/classes"]
    assert "| a&#124;b | c | 1 | 25.00 |" in said["val/confused"]
    assert texts(by_class(counts={})) == {}


def test_a_picture_shows_colours_of_the_palette_wrong_pixels_and_stripes_where_nothing_counts():
    """Draws four fields of a map: right, wrong, not counted, right."""
    target, predicted = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    target[:32, 32:], predicted[:32, 32:], target[32:, :32] = 1, 2, IGNORE
    image = np.full((3, 64, 64), 100, np.uint8)
    palette = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    drawn = draw_maps(image, target, predicted, ["a", "b", "c"], palette)
    fields = [(LINE + 64, 64), (LINE + 64, 192), (LINE + 192, 64), (LINE + 192, 192)]

    def field(panel, number):
        row, column = fields[number]
        return drawn[row - 20 : row + 20, column + panel * (SIDE + GAP) - 20 :][:, :40].reshape(-1, 3)

    covered = [tuple(round(0.35 * 100 + 0.65 * part) for part in colour) for colour in palette]
    for panel, colours in ((0, [(100,) * 3] * 4), (1, [covered[0], covered[1], None, covered[0]]),
                           (2, [covered[0], covered[2], covered[0], covered[0]]),
                           (3, [(100,) * 3, WRONG, None, (100,) * 3])):  # fmt: skip
        for number, colour in enumerate(colours):
            assert {*map(tuple, field(panel, number).tolist())} == ({colour} if colour else {*STRIPES}), (panel, number)
    everywhere = draw_maps(image, np.full((64, 64), IGNORE, np.uint8), predicted, ["a", "b", "\u6c34|\n"], palette)
    assert everywhere.shape[1] == drawn.shape[1]


@pytest.mark.parametrize("size", [(1, 900), (2048, 1024), (33, 60)])
def test_a_picture_of_any_image_is_small(size):
    maps, names = np.random.default_rng(0).integers(0, 150, (2, *size), np.uint8), [f"name {n}" * 9 for n in range(150)]
    drawn = draw_maps(np.zeros((3, *size), np.uint8), *maps, names, varied(150))
    assert drawn.shape[0] <= 450 and drawn.shape[1] <= 4 * SIDE + 3 * GAP


@pytest.mark.parametrize("samples", [1, 3, 4, 11, 50_000])
def test_the_samples_that_are_drawn_depend_on_their_number_alone(samples):
    found = chosen(samples)
    assert len(set(found)) == len(found) == min(SAMPLES, samples) and 0 <= min(found) <= max(found) < samples
