"""scripts/gpu_check.py on a CPU: every part runs on small sizes, what is wrong is found, and a cut loses nothing."""

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import HIDING, ROOT, command, refused, succeed

from en.benchmarks.gpu import cifar
from en.benchmarks.gpu.conduct import Running, watch
from en.benchmarks.gpu.correctness import Case, errors, result_of
from en.benchmarks.gpu.exactness import unequal
from en.benchmarks.gpu.parts import MINUTES, PARTS, stages
from en.benchmarks.gpu.process import start
from en.benchmarks.gpu.report import Setup
from en.benchmarks.gpu.targets import OF_RESULTS, TARGETS, target_rows
from en.errors import UserError

TINY = ("--device", "cpu", "--tiny")


def test_every_part_runs_on_small_sizes_and_every_target_has_its_figure(tmp_path):
    out = tmp_path / "all.json"
    done = succeed("scripts/gpu_check.py", *TINY, "--fork", "--minutes", 60, "--json", out)
    report = json.loads(out.read_text())
    assert list(report["parts"]) != [] and set(report["parts"]) == set(PARTS)
    for name, part in report["parts"].items():
        assert part["exit code"] == 0 and not part["cut off"] and part["failures"] == [], (name, part)
        assert part["tables"] or name == "caches", name
    assert {"images/s", "/ training, eager", "/ training, compiled"} < set(report["loading"][0])
    assert max(map(len, done.stdout.splitlines())) <= 120
    verdicts = {row["figure"]: row["verdict"] for row in report["targets"]}
    assert [text for text, verdict in verdicts.items() if verdict == "not measured"] == [
        "ResNet50 training, compiled both: SN / BN"  # two networks are compiled on small sizes
    ]
    for text in ("two deterministic runs: the same bits", "a killed run, resumed: the same bits"):
        assert verdicts[text] == "met"
    assert verdicts["cases with an error beyond the type's"] == verdicts["options of train.py that fail"] == "met"


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


def test_where_torch_is_alone_what_needs_no_more_runs_and_the_rest_is_skipped_by_package(tmp_path):
    hidden = {name for part in PARTS.values() for name in part.needs} | {"rich", "ffcv", "psutil"}
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    out, path = tmp_path / "all.json", f"{tmp_path}:{ROOT}"
    parts = "layer,steps,trainer"
    done = succeed("scripts/gpu_check.py", *TINY, "--only", parts, "--json", out, PYTHONPATH=path)
    report = json.loads(out.read_text())
    assert set(report["parts"]) == {"layer"} and report["packages"]["torch"]
    assert (
        "steps: skipped: needs torchvision\n" in done.stdout
        and "trainer: skipped: needs torchvision, timm" in done.stdout
    )
    assert "not measured" in done.stdout.splitlines()[-1]


def running(tmp_path: Path, seconds: float, code: str) -> Running:
    """A part whose code is given; ROWS is the file for its lines."""
    script, rows = tmp_path / "part.py", tmp_path / "rows"
    script.write_text(code.replace("ROWS", repr(str(rows))))
    return Running("layer", start(str(script), [], tmp_path / "log", False, leads_group=True), rows, seconds)


def test_a_part_cut_off_at_its_limit_leaves_what_it_found_and_no_process(tmp_path, capsys):
    code = """
import os, time
child = os.fork()
if child:
    row = '{"table": "t", "row": {"a": 1, "pid": %d}}' % child
    open(ROWS, "w").write(row + '\\n{"figure": "f", "value": 2}\\n{"table": "t')
time.sleep(600)
"""
    (part,) = watch([running(tmp_path, 2.0, code)])
    result = part.result()
    ((row,),) = result["tables"].values()
    assert result["cut off"] and row["a"] == 1 and result["figures"] == {"f": 2} and result["failures"] == []
    assert "cut off at its limit" in capsys.readouterr().out
    deadline = time.monotonic() + 10
    while Path(f"/proc/{row['pid']}/stat").is_file() and Path(f"/proc/{row['pid']}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the part's child lives on"
        time.sleep(0.01)


def test_a_part_that_crashes_is_a_failure_with_its_last_words(tmp_path, capsys):
    code = "import os, signal\nprint('so far', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
    (part,) = watch([running(tmp_path, 60.0, code)])
    assert part.failures() == ["exit code -11"] and "so far" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bn", "gn", "en"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["output", "input's gradient", "parameters' gradients", "averages"])
def test_an_error_of_a_few_roundings_is_beyond_what_a_type_allows(name, dtype, what):
    case = Case(name, (4, 58, 7, 7), dtype, True, "cpu")
    result = result_of(Setup("cpu", True, None, 0, False), case, "plain", "nchw")
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


def write_batch(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_the_pickles_of_cifar10_are_read_and_others_refused_before_they_run_code(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
    for name, rows in (("data_batch_1", pixels[:2]), ("data_batch_2", pixels[2:4]), ("test_batch", pixels[4:])):
        write_batch(tmp_path / name, {b"data": rows, b"labels": [3, 9], b"batch_label": b"one"})
    training, test = cifar.read_pickles(tmp_path, "cpu")
    assert torch.equal(training.images.reshape(4, -1), torch.from_numpy(pixels[:4]))
    assert training.labels.tolist() == [3, 9, 3, 9] and test.images.shape == (2, 3, 32, 32)
    for bad, words in (
        (print, "expected CIFAR-10's pickles"),
        ({b"data": pixels, b"labels": [1]}, "expected images of"),
        ({b"data": pixels[:1], b"labels": [10]}, "expected images of"),
        ([], "expected a batch of CIFAR-10"),
    ):
        write_batch(tmp_path / "test_batch", bad)
        with pytest.raises(UserError, match=words):
            cifar.read_pickles(tmp_path, "cpu")
    (tmp_path / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch"):
        cifar.read_pickles(tmp_path, "cpu")


def test_all_parts_together_fit_into_their_time():
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
