"""scripts/gpu_check.py without a GPU: it ends in time, says what failed and what hung, and loses nothing else."""

import json
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT, command, last_json, refused, succeed
from gpu.parts import MINUTES, PARTS, Part, stages
from gpu.results import Setup
from gpu.running import GRACE_S, run_parts
from gpu.targets import OF_RESULTS, TARGETS, summary, target_rows
from gpu.test_correctness import Case, errors, result_of
from gpu.test_exactness import unequal

TINY = ("--device", "cpu", "--tiny")


def test_the_last_line_is_json_that_says_what_was_measured(tmp_path):
    out = tmp_path / "all.json"
    done = succeed("scripts/gpu_check.py", *TINY, "--only", "layer", "--json", out)
    found, report = last_json(done), json.loads(out.read_text())
    assert found["parts"] == {"layer": "done"} and found["failures"] == []
    texts = {target.text for target in TARGETS if target.part == "layer"}
    assert found["targets"].keys() == texts and {verdict for _, verdict in found["targets"].values()} == {"not judged"}
    assert report["packages"]["torch"] and report["parts"]["layer"]["tables"]
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 120


def test_parts_that_fail_crash_or_hang_are_told_and_leave_what_they_found_and_no_process(tmp_path, capsys):
    seconds = {"works": 60, "fails": 60, "crashes": 60, "hangs": 600, "hears_nothing": 600}
    parts = {name: Part("", f"tried_out.py::test_{name}", each, timed=False) for name, each in seconds.items()}
    parts["later"] = Part("", "tried_out.py::test_works", 60)
    began = time.monotonic()
    found = dict(run_parts(parts, 1.0, began + 8, TINY, tmp_path))
    assert time.monotonic() - began < 8 + GRACE_S
    assert set(found) == set(seconds), "a part without time for it has run"
    failures = {name: part["failures"] for name, part in found.items() if part["failures"]}
    assert failures.keys() == {"fails", "crashes"} and failures["crashes"] == ["exit code -11"]
    assert failures["fails"] == ["a number: ValueError: could not convert string to float: 'none'", "exit code 1"]
    assert {name for name, part in found.items() if part["cut off"]} == {"hangs", "hears_nothing"}
    assert found["works"]["figures"] == {"killed": True} and found["works"]["notes"] == ["a note"]
    assert found["fails"]["tables"] == {"a table": [{"name": "after it", "value": 2.0}]}
    assert any("Timeout" in line or "time.sleep(600)" in line for line in found["hangs"]["last words"])
    ((row,),) = found["hangs"]["tables"].values()
    deadline, state = time.monotonic() + 10, Path(f"/proc/{row['pid']}/stat")
    while state.is_file() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the part's child lives on"
        time.sleep(0.01)
    text = capsys.readouterr().out
    assert "hears_nothing: cut off at its limit, " in text and "fails: failed: a number: ValueError" in text
    report = dict.fromkeys(("command", "git_commit", "git_dirty", "hardware", "card", "tiny")) | {"parts": found}
    told = summary({**report, "targets": target_rows(found["works"]["figures"], True)}, list(parts))
    assert told["parts"] == {"works": "done", "fails": "failed", "crashes": "failed", "hangs": "cut off",
                             "hears_nothing": "cut off", "later": "not run"}  # fmt: skip
    assert told["targets"]["a killed run, resumed: the same bits"] == [True, "met"] and len(told["failures"]) == 3


def test_without_a_gpu_it_ends_in_one_line():
    assert "expected a GPU, found none" in refused(command("scripts/gpu_check.py", CUDA_VISIBLE_DEVICES=""))


@pytest.mark.parametrize(
    "arguments",
    [
        (*TINY, "--only", "layers"),
        (*TINY, "--skip", "steps,"),
        ("--device", "cpu"),
        (*TINY, "--images", "/nowhere"),
        (*TINY, "--json", "/nowhere/all.json"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments):
    assert any(argument in refused(command("scripts/gpu_check.py", *arguments)) for argument in arguments[-2:])


@pytest.mark.parametrize("name", ["bn", "gn", "en"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["output", "input's gradient", "parameters' gradients", "averages"])
def test_an_error_of_a_few_roundings_is_beyond_what_a_type_allows(name, dtype, what):
    case = Case(name, (4, 58, 7, 7), dtype, True, "cpu")
    result = result_of(Setup("cpu", True, None, 0), case, "plain", "nchw")
    assert max(errors(case, result).values()) < 1
    if not result[what]:
        assert (name, what) == ("gn", "averages")
        return
    share = 0.02 if dtype == "bfloat16" else 3e-4
    *others, last = result[what]
    for wrong in (last + share * last.abs().max(), last * torch.nan):
        assert errors(case, {**result, what: [*others, wrong]})[what] > 1


def test_a_difference_in_one_bit_is_found_by_its_place():
    one = {"model": {"w": torch.ones(3)}, "optimizer": [1, {"m": None}]}
    other = {"model": {"w": torch.tensor([1, 1, 1 + 2**-23])}, "optimizer": [1, {"m": None}]}
    assert unequal("last.pt", one, one) == [] and unequal("last.pt", one, other) == ["last.pt.model.w"]
    assert unequal("last.pt", one, {**one, "optimizer": [1]}) == ["last.pt.optimizer"]


def test_all_parts_together_fit_into_their_time_and_name_tests_that_are_there():
    for part in PARTS.values():
        file, _, name = part.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / "gpu" / file).read_text()
    assert Part("", "", 1, ("nowhere_to_be_found", "torch")).missing() == ["nowhere_to_be_found"]
    chosen = stages(list(PARTS))
    assert sum(max(PARTS[name].seconds for name in stage) for stage in chosen) <= 60 * MINUTES
    assert [name for stage in chosen for name in stage] == list(PARTS)
    assert stages(["layer"]) == [["layer"]]


def test_a_target_is_met_missed_or_not_measured():
    figures = {"compiled en": 1.05, "compiled sn": 1.06, "share affine": 0.8, "share moments": 0.79, "killed": True}
    verdicts = {target.figure: row["verdict"] for target, row in zip(TARGETS, target_rows(figures, False), strict=True)}
    assert {name: verdicts[name] for name in figures} == dict(
        zip(figures, ("met", "missed", "met", "missed", "met"), strict=True)
    )
    assert verdicts["trainer / bare step"] == "not measured"
    tiny = {target.figure: row["verdict"] for target, row in zip(TARGETS, target_rows(figures, True), strict=True)}
    assert {tiny[t.figure] for t in TARGETS if t.figure in figures and t.part not in OF_RESULTS} <= {"not judged"}
