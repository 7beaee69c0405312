"""What the diagnosis of normalizers says, against their own outputs and gradients."""

import csv
import json
import statistics

import pytest
import torch
from commands import succeed
from kill_loop import Case
from norm_cases import every_norm, images, randomized

from experiments.diagnosis.gains import FLAT, NEAR_CONSTANT, gains_of


@every_norm
def test_the_gain_of_the_whole_layer_is_that_of_its_own_output_and_gradient(name):
    layer = randomized(name, 6)
    x, dy = images(3, 6, 4, 5).requires_grad_(), images(3, 6, 4, 5, seed=2)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    whole = next(iter(gains_of(layer, x, dy)))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    y = layer(x)
    dx = torch.autograd.grad(y, x, dy)[0]
    assert whole.branch == "all" and whole.pixels == 20
    with torch.no_grad():
        scaled = y - layer.bias.view(-1, 6).sum(0).view(1, 6, 1, 1)
        spread = (x - x.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
        assert whole.forward == pytest.approx(float(scaled.square().mean().sqrt() / spread), rel=1e-4)
    # EN's ratios stay fixed in its gain, so that it equals the whole gradient where they do not depend on x.
    if name != "en":
        assert whole.backward == pytest.approx(float(dx.norm() / dy.norm()), rel=1e-3)


def test_the_branches_of_en_add_up_to_the_layer_and_their_ratios_to_one():
    layer = randomized("en", 6, ratios="static")
    x, dy = images(3, 6, 4, 5), images(3, 6, 4, 5, seed=2)
    _, *branches = gains_of(layer, x, dy)
    assert [gain.branch for gain in branches] == ["bn", "in", "ln"]
    assert sum(gain.ratio for gain in branches) == pytest.approx(1)
    twin = torch.nn.InstanceNorm2d(6)
    y = twin(x.requires_grad_()) * (layer.weight_rows[1].view(1, 6, 1, 1) * branches[1].ratio)
    assert branches[1].backward == pytest.approx(float(torch.autograd.grad(y, x, dy)[0].norm() / dy.norm()), rel=1e-3)


def test_cells_are_counted_as_flat_relative_to_their_sample_and_as_constant_by_themselves():
    x = images(2, 4, 8, 8)
    x[0, 0] = 5.0
    x[1, 2] = 1.0 + 0.01 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    gain = next(iter(gains_of(randomized("in", 4), x, torch.ones_like(x))))
    assert (gain.near_constant, gain.flat) == (1 / 8, 2 / 8)
    assert NEAR_CONSTANT < 0.01**2 < FLAT


def test_a_diagnosis_trains_as_training_does_and_writes_its_tables(place, untouched, tmp_path):
    log = (untouched(Case("ffcv", 0)) / "log.jsonl").read_text().splitlines()
    recipe, out = [place.recipe, f"data.root={place.data['ffcv']}"], tmp_path / "out"
    done = succeed("experiments/diagnose.py", *recipe, "--steps", 8, "--every", 7, "--out", out)
    with (out / "steps.csv").open(newline="") as file:
        losses = [float(step["loss"]) for step in csv.DictReader(file)]
    means = [statistics.mean(losses[:4]), statistics.mean(losses[4:])]
    assert means == pytest.approx([json.loads(row)["train_loss"] for row in log[:2]], rel=1e-6)
    with (out / "layers.csv").open(newline="") as file:
        assert {layer["step"] for layer in csv.DictReader(file)} == {"1", "8"}
    assert "largest gradient norm" in done.stdout
