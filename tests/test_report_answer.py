"""The answer of a report: who leads and how sure that is, on what recipe, against chance, at what speed."""

import json
import math
import os
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from report_runs import logged, looked_at, report, run, scores, table

from en.commands.report import main
from en.reports.charts import Chart, Line, are_far_apart, looks
from en.reports.ratios.logged import layers_of
from en.reports.statistics import estimate
from en.reports.tables import LEAST, ends
from en.runs.ratios import EpochRatios

T_2 = 4.302653  # Student's t of 97.5 % with 2 degrees of freedom, from a table


def runs_of(folder: Path, tops: dict[str, list[float]], **changes: object) -> list[str]:
    """Finished runs of each normalizer, one for each score."""
    return [
        run(folder / f"{norm}-s{seed}", norm=norm, seed=seed, scores=scores(top1), **changes)
        for norm, values in tops.items()
        for seed, top1 in enumerate(values)
    ]


def first_line(text: str) -> str:
    """The first sentence under the title of a report in Markdown."""
    return text.splitlines()[2]


def test_the_first_sentence_names_the_leader_by_how_much_and_that_it_is_shown(tmp_path):
    tops = {"bn": [70.0, 71.0, 70.4], "en": [75.0, 76.1, 75.5], "in": [60.2, 60.9, 60.1]}
    text = report(runs_of(tmp_path, tops), tmp_path / "out")
    gaps = [en - bn for en, bn in zip(tops["en"], tops["bn"], strict=True)]
    gap, half = statistics.fmean(gaps), T_2 * statistics.stdev(gaps) / math.sqrt(3)
    said = first_line(text)
    assert said.startswith(f"**en leads with top-1 75.53 %, {gap:.2f} points above bn, the next: shown (95 % interval "
                           f"{gap - half:+.2f} to {gap + half:+.2f}, paired over 3 seeds; p = ")  # fmt: skip
    assert "corrected for 3 comparisons; n = 3). It is shown to be above in.**" in said
    answer = json.loads((tmp_path / "out" / "report.json").read_text())["headlines"]
    assert [f"**{line}**" for line in answer] == [said]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('<p class="answer">en leads with') < page.index("<h2")


def test_what_is_not_shown_is_said_not_to_be(tmp_path):
    text = report(runs_of(tmp_path / "a", {"bn": [70.0, 71.0, 70.4], "en": [70.1, 71.2, 70.2]}), tmp_path / "out")
    assert "en leads with top-1 70.50 %, 0.03 points above bn, the next: not shown (95 % interval -" in first_line(text)
    text = report(runs_of(tmp_path / "b", {"bn": [70.0], "en": [80.0]}), tmp_path / "single")
    said = "10.00 points above bn, the next: not shown (a single run says nothing of the spread between seeds; n = 1)."
    assert said in first_line(text)
    text = report(runs_of(tmp_path / "c", {"en": [80.0, 81.0]}), tmp_path / "alone")
    assert first_line(text) == "**en has top-1 80.50 % (n = 2); no other variant is finished to set it against.**"


def test_a_leader_that_differs_in_more_than_its_normalizer_is_said_to(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", {"optim": {"lr": 0.2}}, norm="bn", scores=scores(60.0))]
    assert "The two differ in optim.lr too.**" in first_line(report(runs, tmp_path / "out"))


def test_each_data_set_has_a_sentence_whose_names_leave_out_what_all_of_it_share(tmp_path):
    tops = {"bn": [70.0], "en": [80.0]}
    runs = [*runs_of(tmp_path / "a", tops), *runs_of(tmp_path / "b", {**tops, "gn": [75.0]}, dataset="clothes")]
    text = report(runs, tmp_path / "out")
    assert text.splitlines()[2].startswith("**ImageNet (1000 classes, 50,000 images), classification: en leads with")
    said = "**clothes (1000 classes, 50,000 images), classification: en leads with top-1 80.00 %, 5.00 points above gn,"
    assert text.splitlines()[4].startswith(said)


def test_runs_without_a_finished_variant_have_no_leader(tmp_path):
    text = report([run(tmp_path / "a", epochs_done=3)], tmp_path / "out")
    assert "leads" not in text and "## Differences" not in text and "against compute" not in text


def test_variants_stand_from_the_best_to_the_worst_and_unfinished_ones_last(tmp_path):
    runs = runs_of(tmp_path, {"bn": [70.0], "en": [80.0], "gn": [75.0]})
    runs += [run(tmp_path / "sn", norm="sn", scores=scores(99.0), epochs_done=3)]
    report(runs, tmp_path / "out")
    for name in ("measured", "cost"):
        found = [row["variant"].partition(",")[0] for row in table(tmp_path / "out", name)]
        assert found == ["en", "gn", "bn", "sn"]
    assert [row["variants"] for row in table(tmp_path / "out", "differences")] == ["en - gn", "en - bn", "gn - bn"]


def test_the_recipe_has_the_batch_and_how_much_of_it_a_rank_normalizes_at_once(tmp_path):
    runs = [run(tmp_path / "a", {"train": {"epochs": 100, "batch_size": 256, "accumulation": 4}}, seed=7)]
    lines = report(runs, tmp_path / "out").splitlines()
    assert lines[4] == (
        "resnet50; ImageNet (1000 classes, 50,000 evaluation images); 224 px; 100 epochs; batch 256, 8 at once on each "
        "rank; rate 0.1, cosine; seeds 7; 8 x some GPU, 8 ranks"
    )
    keys = {row["key"]: row["value"] for row in table(tmp_path / "out", "recipe")}
    assert (keys["train.batch_size"], keys["train.accumulation"], keys["optim.momentum"]) == ("256", "4", "0.9")
    runs += [run(tmp_path / "b", {"optim": {"lr": 0.2}, "train": {"epochs": 1, "batch_size": 8}}, batch_size=8)]
    text = report(runs, tmp_path / "two")
    assert "batch 256, 8 at once on each rank or batch 8, 1 at once on each rank" in text
    assert "| **optim.lr** | 0.1; 0.2 |" in text and "| optim.momentum | 0.9 |" in text


def test_chance_is_said_of_images_and_of_pixels(tmp_path):
    text = report([run(tmp_path / "a", classes=8)], tmp_path / "out")
    assert "**Chance**: a class drawn at random has top-1 12.50 %, top-5 62.50 %." in text
    labelled = [30.0, 60.0, 10.0, 0.0]
    found = {"miou": 41.0, "macc": 50.0, "aacc": 80.0}
    changes = {"task": "segmentation", "score": "miou", "scores": found, "details": {"labelled": labelled}}
    text = report([run(tmp_path / "b", {"task": {"name": "segmentation"}}, **changes)], tmp_path / "pixels")
    assert "most frequent class for every pixel has mIoU 20.00 %, mAcc 33.33 %, pixel accuracy 60.00 %." in text


def test_two_runs_have_no_interval_on_the_page_and_none_reaches_beyond_what_a_share_can_be():
    two = estimate([22.3, 29.3])
    assert ends(two, "%").text == "-" and ends(two, "%").values["low"] == pytest.approx(two.low) and two.n < LEAST
    wide = estimate([1.0, 50.0, 98.0])
    assert ends(wide, "%").text == "0.00 to 100.00" and ends(wide, "").text == f"{wide.low:.2f} to {wide.high:.2f}"


def test_columns_in_which_all_rows_agree_are_said_once_and_kept_in_the_files(tmp_path):
    runs = runs_of(tmp_path, {"bn": [70.0], "en": [80.0]})
    text = report(runs, tmp_path / "out")
    assert "| variant | n | top-1 % | top-5 % |\n" in text
    said = "epochs 100; network resnet50; data ImageNet, 224 px; hardware 8 x some GPU, 8 ranks."
    assert f"**In all rows**: {said}" in text
    assert {row["network"] for row in table(tmp_path / "out", "measured")} == {"resnet50"}
    other = run(tmp_path / "other", norm="gn", hardware="another GPU")
    text = report([*runs, other], tmp_path / "three")
    assert "| variant | n | top-1 % | top-5 % | hardware |\n" in text and "| another GPU, 8 ranks |" in text


def test_a_difference_of_speed_has_the_spread_of_the_runs(tmp_path):
    speeds = {"bn": [100.0, 120.0, 90.0], "en": [80.0, 99.0, 75.0], "gn": [130.0, 80.0, 100.0]}
    runs = [run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, images_per_second=speed)
            for norm, found in speeds.items() for seed, speed in enumerate(found)]  # fmt: skip
    text = report(runs, tmp_path / "out")
    rows = {row["variant"]: row for row in table(tmp_path / "out", "cost")}
    logs = [math.log(en / bn) for en, bn in zip(speeds["en"], speeds["bn"], strict=True)]
    gap, half = statistics.fmean(logs), T_2 * statistics.stdev(logs) / math.sqrt(3)
    keys = ["± images/s %", "± images/s % 95 % interval low", "± images/s % 95 % interval high"]
    found = [float(rows["en"][key]) for key in keys]
    assert found == pytest.approx([100 * math.expm1(log) for log in (gap, gap - half, gap + half)], rel=1e-5)
    of_en, of_gn = (next(line for line in text.partition("## Cost")[2].splitlines() if line.startswith(f"| {norm} |"))
                    for norm in ("en", "gn"))  # fmt: skip
    assert "not shown" not in of_en and ": not shown |" in of_gn
    alone = report(runs[::3], tmp_path / "alone")
    assert "| -20.0 | not shown |" in alone.partition("## Cost")[2]


def test_equal_scores_and_many_variants_keep_looks_apart():
    found = looks(24)
    assert len({look[:2] for look in found}) == 24
    assert all(one.colour != other.colour and one.dash != other.dash for one, other in pairwise(found))


def test_an_axis_is_logarithmic_where_that_helps_and_begins_where_the_data_are():
    assert are_far_apart([0.2, 2.0]) and not are_far_apart([0.3, 2.0]) and not are_far_apart([0.0, 2.0])
    far, near = (Line("en", {epoch: estimate([value / epoch]) for epoch in (1.0, 2.0, 3.0)}) for value in (1.0, 60.0))
    far.points[3.0] = estimate([0.01])
    chart = Chart([far], looks(1), "epoch", "loss", logs=(False, True))
    assert chart.data()["logs"] == [False, True] and not Chart([near], looks(1), "", "", logs=(False, True)).log_y
    for level, seen in ((9.0, False), (15.0, True), (30.0, True), (61.0, False)):
        chart = Chart([near], looks(1), "epoch", "top-1 %", level=(level, "chance"))
        assert (chart.shown_level is not None) == seen, level


def en_run(folder: Path, seed: int) -> str:
    """A run of en whose ratios are in its log: of three layers one leaves `in` out, another did not run."""
    rows = [
        {"epoch": epoch, "train_loss": 1 / epoch, "images_per_second": 9.0, "seconds": 1.0, "top1": 9.0 * epoch,
         "top5": 9.0, "loss": 1.0} for epoch in (1, 2)
    ]  # fmt: skip
    path = Path(logged(folder, "en", seed, rows, 2))
    lines = []
    for epoch in (1, 2, 3):  # the third is of an epoch that the summary does not tell of
        share = 0.2 + 0.1 * epoch + 0.02 * seed
        ratios = {"stem": {"bn": share, "in": 0.9 - share, "ln": 0.1}, "top": {"bn": share, "in": 0.0, "ln": 1 - share}}
        ratios |= {"unused": {"bn": 0.0, "in": 0.0, "ln": 0.0}}
        lines.append(json.dumps({"epoch": epoch, "ratios": ratios}) + "\n")
    (path / "ratios.jsonl").write_text("".join(lines))
    return str(path)


def test_logged_ratios_are_drawn_without_another_command_with_gaps_where_they_take_no_part(tmp_path):
    text = report([en_run(tmp_path / f"en{seed}", seed) for seed in range(2)], tmp_path / "out")
    assert "## Ratios" in text
    (alt,) = [line for line in text.splitlines() if "ratios&#95;by&#95;layer" in line or "ratios_by_layer" in line]
    assert "in left out in 1 of 2 layers" in alt and "in 0.49 on average" in alt and "bn 0.41 on average" in alt
    (alt,) = [line for line in text.splitlines() if "ratios_by_epoch" in line]
    assert "in, in 1 of 2 layers: 0.59 to 0.49" in alt and "bn: 0.31 to 0.41" in alt
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"absent":[{"text":"in left out","spans":[[1.5,2.5]]}]' in page
    svg = (tmp_path / "out" / "figures" / "ratios_by_layer.svg").read_text()
    assert "in left out" in svg and "unused" not in svg
    assert layers_of({0: [EpochRatios(epoch=1, ratios={"a": {"bn": 0.0}, "b": {"bn": 1.0}})]}) == ["b"]


def test_photos_that_a_page_has_no_room_for_are_left_beside_it(tmp_path):
    path = Path(run(tmp_path / "en"))
    folder = looked_at(path)
    for name, size in (("a", 400_000), ("b", 1_400_000), ("c", 400_000)):
        comment = f"<!-- {name * size} -->"
        (folder / f"{name}.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'>{comment}</svg>")
    text = report([str(path)], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(page.encode()) < 2_000_000 and page.count("<img src=") == 2
    (left,) = re.findall('<a href="(.*?)">', page)
    assert left == "figures/ratios_1_b.svg"
    assert (tmp_path / "out" / left).read_bytes() == (folder / "b.svg").read_bytes()
    assert text.count("](figures/ratios_1_") == 3


def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: str) -> None:
    monkeypatch.setenv("BROWSER", browser)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    monkeypatch.setattr(sys, "argv", ["report.py", run(tmp_path / "en"), "--out", str(tmp_path / "out"), "--open"])
    main()


def test_open_starts_the_browser_with_the_page(tmp_path, monkeypatch, capsys):
    script, told = tmp_path / "bin" / "reader", tmp_path / "told"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho \"$1\" > '{told}'\n")
    script.chmod(0o755)
    monkeypatch.delitem(sys.modules, "webbrowser", raising=False)
    import webbrowser

    monkeypatch.setattr("en.commands.report.webbrowser", webbrowser)  # which reads BROWSER once, as it is first used
    opened(tmp_path, monkeypatch, str(script))
    assert told.read_text().strip() == (tmp_path / "out" / "report.html").resolve().as_uri()
    assert capsys.readouterr().err == ""
