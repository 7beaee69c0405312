"""Runs beside earlier ones of several seeds, and what is said of those."""

import math
import statistics
import sys

import pytest
import yaml
from report_runs import run, scores

from en.commands.report import main
from en.errors import UserError
from en.reports.verdict import read_measured, verdict

MEASURED = {
    "command": "torchrun train.py recipe.yaml", "hardware": "two cores", "date": "2026-11-24", "metric": "top1",
    "seeds": [0, 1, 2, 3, 4],
    "scores": {"bn": [76.0, 76.4, 75.8, 76.1, 76.2], "sn": [70.0] * 5, "en": [76.9, 77.5, 76.5, 77.0, 77.1]},
}  # fmt: skip
T_4 = 2.776445  # Student's t of 97.5 % with 4 degrees of freedom, from a table


def written(tmp_path, **changes):
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump({**MEASURED, **changes}))
    return path


def test_the_verdict_pairs_the_two_best_over_seeds():
    gaps = [en - bn for en, bn in zip(MEASURED["scores"]["en"], MEASURED["scores"]["bn"], strict=True)]
    half = T_4 * statistics.stdev(gaps) / math.sqrt(5)
    gap, spread = statistics.mean(gaps), statistics.stdev(MEASURED["scores"]["en"])
    assert verdict(MEASURED["scores"], MEASURED["seeds"]) == (
        f"Over 5 seeds en is {gap:.2f} points above bn, the next: larger than the spread between seeds ({spread:.2f}), "
        f"and the 95 % interval of the paired difference, {gap - half:+.2f} to {gap + half:+.2f}, does not contain 0: "
        "en wins."
    )


def test_a_difference_within_the_spread_is_no_win():
    close = {"bn": [76.0, 77.0, 75.0, 76.5, 76.2], "en": [76.1, 76.0, 76.3, 75.7, 77.0]}
    said = verdict(close, MEASURED["seeds"])
    assert "not larger than the spread" in said and ", and the" in said
    assert said.endswith("contains 0: neither is shown to win.")


def test_a_difference_beyond_the_spread_is_no_win_where_its_interval_contains_0():
    few = {"bn": [88.28, 88.18, 88.28], "en": [87.98, 88.15, 88.14]}
    assert verdict(few, [0, 1, 2]) == (
        "Over 3 seeds bn is 0.16 points above en, the next: larger than the spread between seeds (0.10), but the 95 % "
        "interval of the paired difference, -0.18 to +0.49, contains 0: neither is shown to win."
    )


def test_a_report_shows_its_runs_beside_the_measured_ones(tmp_path, monkeypatch, capsys):
    runs = [run(tmp_path / norm, norm=norm, scores=scores(top1)) for norm, top1 in (("en", 76.66), ("bn", 75.55))]
    monkeypatch.setattr(
        sys, "argv", ["report.py", *runs, "--out", str(tmp_path / "out"), "--measured", str(written(tmp_path))]
    )
    main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:4] for line in lines if line.split()[:1] in (["bn"], ["sn"], ["en"])}
    assert rows == {"bn": ["75.55", "76.10", "±"], "sn": ["-", "70.00", "±"], "en": ["76.66", "77.00", "±"]}
    assert any(line.startswith("Over 5 seeds en is 0.90 points above bn") for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": {"bn": [1.0], "en": MEASURED["scores"]["en"]}}, "scores.bn: expected 5 values, one for each seed"),
        ({"seeds": [0]}, "seeds=[0]: expected at least 2 items"),
        ({"metirc": "top1"}, "unknown key metirc"),
    ],
)
def test_a_wrong_file_of_measured_scores_is_refused_by_key(tmp_path, changes, said):
    with pytest.raises(UserError, match=r"measured\.yaml: ") as refusal:
        read_measured(written(tmp_path, **changes))
    assert said in str(refusal.value)
