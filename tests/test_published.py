"""Published figures beside what was measured."""

import math
import statistics

import pytest
import yaml
from report_runs import report, run, scores, table

from en.norm.registry import AS_PUBLISHED
from en.reports.published import published, settings
from en.tasks.protocols import PROTOCOLS


def test_published_figures_stand_beside_with_source_and_unverified_marked(tmp_path):
    text = report([run(tmp_path / "a")], tmp_path / "out").partition("### Published")[2]
    for row in published().figures:
        lines = [line for line in text.splitlines() if f"| {row['top1']:,} |" in line and row["source"] in line]
        assert bool(lines) == (row["model"] == "resnet50")
        assert all(("**unverified**" in line) == (row["status"] == "unverified") for line in lines)


def test_an_unverified_figure_never_judges_a_run(tmp_path):
    runs = [run(tmp_path / "en", norm_options=AS_PUBLISHED["en"])]
    runs += [run(tmp_path / "sn", norm="sn", norm_options=AS_PUBLISHED["sn"], scores=scores(77.0))]
    report(runs, tmp_path / "out")
    en, sn = table(tmp_path / "out", "against_published")
    assert (en["variant"], en["status"], en["published top-1"]) == (
        "en (min_pixels=1, gate_pixels=1)",
        "unverified",
        "78.1",
    )
    assert en["difference of top-1"] == en["difference of top-5"] == ""
    assert (sn["variant"], sn["status"], sn["published top-1"]) == ("sn (min_pixels=1)", "published", "76.92")
    assert float(sn["difference of top-1"]) == pytest.approx(0.08)


def test_a_difference_from_a_published_figure_has_the_uncertainty_of_the_measured_mean(tmp_path):
    top1 = [76.7, 77.3, 77.1]
    options = {"norm": "sn", "norm_options": AS_PUBLISHED["sn"]}
    report([run(tmp_path / f"{s}", seed=s, scores=scores(top1[s]), **options) for s in range(3)], tmp_path / "out")
    (row,) = table(tmp_path / "out", "against_published")
    half = 4.302653 * statistics.stdev(top1) / math.sqrt(3)
    gap = statistics.fmean(top1) - 76.92
    found = [float(row[f"{key}"]) for key in row if key.startswith(("difference of top-1", "its 95 % interval, top-1"))]
    assert found == pytest.approx([gap, gap - half, gap + half], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "Fashion-MNIST", "classes": 10, "images": 10_000}, "other data (Fashion-MNIST, 10 classes"),
        ({"task": "regression"}, "another task (regression)"),
        ({"eval_resolution": 256}, "another resolution (256 pixels)"),
        ({"epochs_done": 3}, "unfinished (3 of 100 epochs)"),
        ({"norm_options": {"groups": 16, "min_pixels": 1}}, "options of its own (groups=16)"),
        ({"norm_options": {}}, "options of its own (min_pixels=65)"),
    ],
)
def test_what_cannot_be_compared_is_said_in_plain_words(tmp_path, changes, words):
    report([run(tmp_path / "a", norm="sn", **changes)], tmp_path / "out")
    (row,) = table(tmp_path / "out", "against_published")
    assert row["status"].startswith("not comparable: ") and words in row["status"]
    assert row["difference of top-1"] == ""


def test_options_that_are_the_defaults_or_change_no_figure_can_be_compared(tmp_path):
    options = {"normalizers": ["bn", "in", "ln"], "sync": True, "eps": 1e-5, "min_pixels": 1}
    report([run(tmp_path / "a", norm="sn", norm_options=options)], tmp_path / "out")
    assert [row["status"] for row in table(tmp_path / "out", "against_published")] == ["published"]


def test_a_network_without_published_figures_says_so(tmp_path):
    text = report([run(tmp_path / "a", model="resnet18")], tmp_path / "out")
    assert "No published figure is on file for resnet18" in text


def test_every_published_figure_has_a_source_and_a_status():
    for setting in settings().values():
        score = "top1" if setting.task == "classification" else "miou"
        for row in setting.figures:
            assert row["source"] and row["status"] in ("published", "unverified") and 0 < row[score] < 100
            assert row["status"] == "unverified" or ("protocol" in row) == (setting.task == "segmentation")
            assert row.get("protocol") in (*PROTOCOLS, None)
    assert yaml.safe_dump(published().figures)


def test_a_run_that_labels_pixels_is_set_against_figures_of_its_data_set_and_protocol(tmp_path):
    scored = {"miou": 36.9, "macc": 47.0, "aacc": 77.5, "classes_found": 150.0}
    facts = {"model": "fcn_resnet50", "norm": "gn", "norm_options": {}, "task": "segmentation", "scores": scored}
    facts |= {"score": "miou", "dataset": "ADE20K", "classes": 150, "images": 2000, "eval_resolution": 512}
    task = {"name": "segmentation", "data_set": "ade20k", "protocol": "snseg"}
    theirs = {"name": "fcn_resnet50", "options": {"aux_channels": 512, "head_dropout": 0.0}}
    report([run(tmp_path / "a", config={"task": task, "model": theirs}, **facts)], tmp_path / "out")
    single, many = table(tmp_path / "out", "against_published_ade20k")
    assert (single["status"], single["published mIoU"]) == ("published", "35.66")
    assert float(single["difference of mIoU"]) == pytest.approx(1.24) and "protocol snseg" in single["source"]
    assert many["status"] == "not comparable: another protocol (snseg)" and many["difference of mIoU"] == ""
    report([run(tmp_path / "b", config={"task": task}, **facts)], tmp_path / "other")
    other = table(tmp_path / "other", "against_published_ade20k")[0]["status"]
    assert other == "not comparable: another network (aux_channels=default; head_dropout=default)"
    smaller = {"task": task, "model": theirs, "data": {"root": "unused", "eval_resolution": [256, 512]}}
    report([run(tmp_path / "c", config=smaller, **facts)], tmp_path / "smaller")
    assert "images and labels of another size" in table(tmp_path / "smaller", "against_published_ade20k")[0]["status"]


def test_a_figure_of_a_network_that_only_shares_the_name_of_ours_judges_no_run(tmp_path):
    facts = {
        "model": "fcn_resnet50",
        "norm": "bn",
        "norm_options": {},
        "task": "segmentation",
        "scores": {"miou": 70.0},
    }
    facts |= {"score": "miou", "dataset": "Cityscapes", "classes": 19, "images": 500, "eval_resolution": 512}
    task = {"name": "segmentation", "data_set": "cityscapes", "protocol": "mmseg"}
    report([run(tmp_path / "a", config={"task": task}, **facts)], tmp_path / "out")
    single, _ = table(tmp_path / "out", "against_published_cityscapes")
    assert single["status"].startswith("not comparable: another network (a head of two 3 x 3 convolutions")
    assert (single["published mIoU"], single["difference of mIoU"]) == ("75.65", "")


def test_figures_of_a_network_that_is_not_on_file_are_shown_as_unverified_and_judge_no_run(tmp_path):
    facts = {"model": "fcn_resnet50", "norm": "sn", "norm_options": {}, "task": "segmentation", "score": "miou"}
    facts |= {"scores": {"miou": 70.0}, "dataset": "Cityscapes", "classes": 19, "images": 500, "eval_resolution": 512}
    task = {"name": "segmentation", "data_set": "cityscapes", "protocol": "mmseg"}
    text = report([run(tmp_path / "a", config={"task": task}, **facts)], tmp_path / "out")
    unknown = [row for row in settings()["cityscapes"].figures if "model" not in row]
    assert len(unknown) == 6 and {row["status"] for row in unknown} == {"unverified"}
    shown = [row for row in table(tmp_path / "out", "published_cityscapes") if row["network"] == "not on file"]
    assert [(row["normalizer"], row["status"]) for row in shown] == [(row["norm"], "unverified") for row in unknown]
    assert text.count("**unverified**") == 6
    assert not (tmp_path / "out" / "tables" / "against_published_cityscapes.csv").exists()
