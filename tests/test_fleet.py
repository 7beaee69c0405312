"""The second trainer, experiments/fleet: its steps, its images, and what is compared of its runs."""

import json
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from commands import command, refused, succeed
from PIL import Image

from experiments.fleet.accuracy import PUBLISHED
from experiments.fleet.fleet import FleetRun, Member, Plan, Recipe, fleet_of, lockstep
from experiments.fleet.pictures import Pictures, generated, read_pictures

TINY = ("--device", "cpu", "--tiny")
RECIPE = Recipe("shufflenet_v2_x0_5", small_stem=False, pixels=32, epochs=2, batch=8, rate=0.05, decay=1e-4)


def fleet(labels: Sequence[str], images: int, generated: Pictures) -> list[FleetRun]:
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
        "experiments/gpu_accuracy.py", tmp_path, *line, "--seeds", 2, "--normalizers", "bn,en_paper", "--jsonl", out
    )
    rows = [json.loads(text)["row"] for text in out.read_text().splitlines() if "row" in json.loads(text)]
    assert [row["n"] for row in rows if "n" in row] == [2, 2] and len(rows) == 6
    assert "minus bn" in done.stdout and "en_paper" in done.stdout


@pytest.mark.parametrize("arguments", [("--normalizers", "bn,batch"), ("--statistic", "48")])
def test_bad_arguments_of_the_comparison_are_refused_in_one_line(tmp_path, arguments):
    (tmp_path / "train" / "a").mkdir(parents=True)
    message = refused(command("experiments/gpu_accuracy.py", tmp_path, *TINY, *arguments))
    assert arguments[0] in message
