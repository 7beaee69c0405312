"""scripts/gpu_check.py on a CPU: every part runs on small sizes, what is wrong is found, and a cut loses nothing."""

import json
import math
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import HIDING, ROOT, command, refused, succeed
from PIL import Image

from en.benchmarks.gpu.accuracy import PUBLISHED
from en.benchmarks.gpu.conduct import Running, watch
from en.benchmarks.gpu.correctness import Case, errors, result_of
from en.benchmarks.gpu.exactness import unequal
from en.benchmarks.gpu.fleet import Member, Plan, Recipe, Run, fleet_of, lockstep
from en.benchmarks.gpu.parts import MINUTES, PARTS, stages
from en.benchmarks.gpu.pictures import Pictures, generated, read_pictures
from en.benchmarks.gpu.process import start
from en.benchmarks.gpu.report import Setup
from en.benchmarks.gpu.targets import OF_RESULTS, TARGETS, TYPES, target_rows

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
    assert verdicts["options of train.py that fail"] == "met"
    assert {verdicts[f"{name}: cases with an error beyond the type's"] for name in TYPES} == {"met"}


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


RECIPE = Recipe("shufflenet_v2_x0_5", small_stem=False, pixels=32, epochs=2, batch=8, rate=0.05, decay=1e-4)


def fleet(labels: Sequence[str], images: int, generated: Pictures) -> list[Run]:
    members = [Member(label, *PUBLISHED.get(label, (label, {})), images, 0) for label in labels]
    return fleet_of(members, RECIPE, generated)


def test_a_run_started_again_repeats_its_losses_to_the_bit_and_its_rates_end_at_zero():
    pictures = generated(24, 8, 32, "cpu")
    (run,) = fleet(["en"], 8, pictures)
    lockstep([run], 6)
    first = run.losses.clone()
    assert torch.isfinite(first).all() and 0 <= run.top1(pictures.val) <= 100
    run.restart()
    lockstep([run], 6)
    assert torch.equal(run.losses, first)
    rates = RECIPE.rates(3, "cpu")
    assert rates.argmax() in (2, 3) and 0 < rates[-1] < 0.1 * RECIPE.rate and (rates > 0).all()


@pytest.mark.parametrize(("name", "least", "most"), [("ln", 0, 0.02), ("bn", 0.2, math.inf)])
def test_a_batch_in_parts_adds_up_to_the_whole_where_no_statistic_crosses_samples(name, least, most):
    pictures = generated(16, 8, 32, "cpu")
    whole, parts = (fleet([name], images, pictures)[0] for images in (8, 2))
    for run in (whole, parts):
        run.advance()
    expected, found = (torch.cat([p.grad.flatten() for p in run.network.parameters()]) for run in (whole, parts))
    assert least <= float((found - expected).norm() / expected.norm()) < most  # in bfloat16
    if name == "ln":
        assert float(whole.losses[0]) == pytest.approx(float(parts.losses[0]), rel=0.02)


def test_a_crop_that_is_the_whole_image_changes_nothing_and_crops_lie_within(tmp_path):
    plan = Plan.drawn(50, RECIPE, 3, "cpu")
    assert plan.chosen.shape == (12, 8) and set(plan.chosen.flatten().tolist()) <= set(range(50))
    assert len(set(plan.chosen[:6].flatten().tolist())) == 48  # whole batches, each image at most once an epoch
    reach = plan.crops[..., :2].abs().sum(-1) + plan.crops[..., 2].abs()
    assert float(reach.max()) <= 1 + 1e-6 and float(plan.crops[..., :2].abs().amax(-1).min()) >= 0.6
    area = plan.crops[..., 0, 0].abs() * plan.crops[..., 1, 1]
    assert float(area.min()) >= 0.99 * RECIPE.crop * 3 / 4
    image, whole = torch.randn(1, 3, 16, 16), torch.eye(2, 3)[None]
    grid = torch.nn.functional.affine_grid(whole, [1, 3, 16, 16], align_corners=False)
    same = torch.nn.functional.grid_sample(image, grid, align_corners=False, padding_mode="reflection")
    assert torch.allclose(same, image, atol=1e-5)


def test_pictures_are_the_centre_squares_of_a_source(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30, 1] = 200
    for split, number in product(("train", "val"), range(2)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(wide).save(folder / f"{number}.png")
    pictures = read_pictures(str(tmp_path), 10, "cpu", workers=1)
    assert pictures.classes == 2 and sorted(pictures.train.labels.tolist()) == [0, 0, 1, 1]
    assert pictures.train.images.shape == (4, 3, 10, 10)
    assert (pictures.train.images[:, 1] == 200).all() and (pictures.train.images[:, 0] == 0).all()


def test_the_accuracy_of_normalizers_is_compared_over_seeds(tmp_path):
    for split, label in product(("train", "val"), ("a", "b")):
        (tmp_path / split / label).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (16, 16), (number * 9, 90 * (label == "a"), 7)).save(
                tmp_path / split / label / f"{number}.png"
            )
    line = ("--device", "cpu", "--tiny", "--network", "shufflenet_v2_x0_5", "--pixels", 32, "--batch", 8, "--epochs", 2)
    out = tmp_path / "rows.jsonl"
    done = succeed(
        "scripts/gpu_accuracy.py", tmp_path, *line, "--seeds", 2, "--normalizers", "bn,en_paper", "--jsonl", out
    )
    rows = [json.loads(text)["row"] for text in out.read_text().splitlines() if "row" in json.loads(text)]
    assert [row["n"] for row in rows if "n" in row] == [2, 2] and len(rows) == 6
    assert "minus bn" in done.stdout and "en_paper" in done.stdout


@pytest.mark.parametrize("arguments", [("--normalizers", "bn,batch"), ("--statistic", "48")])
def test_bad_arguments_of_the_comparison_are_refused_in_one_line(tmp_path, arguments):
    (tmp_path / "train" / "a").mkdir(parents=True)
    message = refused(command("scripts/gpu_accuracy.py", tmp_path, *TINY, *arguments))
    assert arguments[0] in message


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
