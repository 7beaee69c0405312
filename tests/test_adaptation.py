"""Statistics at test time: what layers with running averages normalize by, against numpy and the layers' own training.

All that is asked of a network is asked of every normalizer in the registry.
"""

import copy
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, command, environment_of, last_json, refused, succeed
from norm_cases import every_norm, images, network, randomized
from torch import Tensor, nn

from en.build import open_loaders
from en.config.reading import load_config
from en.data.corruptions import CORRUPTIONS
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.evaluation.adapt import Shuffled, Statistics, moments_of
from en.norm import NORMALIZERS, RunningNormalizer, build_norm, record_ratios, replace_norm
from en.norm.adaptation import Moments, averaging_layers, batch_statistics, keeping_averages, replace_averages

ALONE = Ranks(0, 1, 0, 1)
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: en}
data: {root: unset, resolution: 32, workers: 1}
train: {epochs: 2, batch_size: 24}
optim: {lr: 0.05}
device: cpu
"""
BY_BATCHES = [name for name, kind in NORMALIZERS.items() if issubclass(kind, RunningNormalizer)]


@pytest.fixture(scope="module")
def finished(recipe: Path, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    succeed("train.py", recipe, f"data.root={betons}", f"run_dir={run}")
    return run


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def numpy_moments(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each channel of (N, C, H, W), float64."""
    cells = values.double().numpy()
    return cells.mean((0, 2, 3)), cells.var((0, 2, 3))


@every_norm
def test_each_batchs_statistics_give_what_the_layer_computes_in_training_and_leave_no_trace(name):
    model = nn.Sequential(randomized(name, 6), nn.Conv2d(6, 6, 3), randomized(name, 6, seed=1)).eval()
    x, learning = images(5, 6, 7, 9), copy.deepcopy(model).train()
    before = state_of(model)
    with torch.no_grad():
        expected = learning(x)
        with batch_statistics(model):
            found = model(x)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
        assert name not in BY_BATCHES or not torch.allclose(found, model(x), atol=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", BY_BATCHES)
def test_a_prior_counts_like_so_many_images_for_mean_and_biased_variance(name):
    layer, x = randomized(name, 6).eval(), images(5, 6, 7, 9)
    (mean, var), oracle = numpy_moments(x), copy.deepcopy(layer)
    oracle.running_mean.copy_(torch.from_numpy(15 / 20 * layer.running_mean.numpy() + 5 / 20 * mean))
    oracle.running_var.copy_(torch.from_numpy(15 / 20 * layer.running_var.numpy() + 5 / 20 * var))
    with torch.no_grad(), batch_statistics(layer, prior=15):
        torch.testing.assert_close(layer(x), oracle(x), rtol=1e-5, atol=1e-5)


def test_ratios_follow_from_the_samples_own_moments_and_the_new_averages():
    layer, x = randomized("en", 6).eval(), images(5, 6, 7, 9)
    mean, var = map(torch.from_numpy, numpy_moments(x))
    expected = copy.deepcopy(layer)
    expected.running_mean.copy_(mean)
    expected.running_var.copy_(var)
    with torch.no_grad(), record_ratios(layer) as record, record_ratios(expected) as oracle:
        with batch_statistics(layer):
            layer(x)
        expected(x)
        layer(x)
    found, trained = record[""][:5], record[""][5:]
    torch.testing.assert_close(found, oracle[""])
    assert not torch.allclose(found, trained, atol=1e-3)


def test_torchs_own_layers_are_normalized_alike_of_any_number_of_axes():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)
    )
    learning, x = copy.deepcopy(model).train(), images(5, 3, 7, 9)
    assert [*averaging_layers(model)] == ["1", "4"]
    with torch.no_grad(), batch_statistics(model.eval()):
        torch.testing.assert_close(model(x), learning(x), rtol=1e-5, atol=1e-5)


def test_moments_of_parts_pool_to_those_of_the_whole_in_any_order():
    x = images(23, 4, 5, 6) * 3 + torch.randn(23, 1, 1, 1, generator=torch.Generator().manual_seed(2)) * 10 + 1000
    mean, var = numpy_moments(x)
    for order in (range(23), reversed(range(23)), np.random.default_rng(0).permutation(23)):
        rows = x[list(order)]
        first, *rest = [Moments.of(part) for part in torch.split(rows, [1, 7, 2, 13])]
        pooled = first
        for part in rest:
            pooled = pooled.with_more(part)
        assert pooled.count == 23 * 30
        np.testing.assert_allclose(pooled.mean, mean, rtol=1e-7)
        np.testing.assert_allclose(pooled.var, var, rtol=1e-4)


def test_one_value_per_channel_has_no_statistics_without_a_prior():
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "en").eval()
    with torch.no_grad():
        with batch_statistics(model), pytest.raises(ValueError, match="1 of 4 channels: expected more than one value"):
            model(images(1, 3, 1, 1))
        with batch_statistics(model, prior=1):
            assert model(images(1, 3, 1, 1)).isfinite().all()


def test_averages_are_put_back_when_evaluation_fails():
    model = replace_norm(network(), "sn").eval()
    before = state_of(model)
    with pytest.raises(RuntimeError), keeping_averages(model), batch_statistics(model):
        model(images(2, 5, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


# ---- over a set ----


def val_of(recipe: Path, root: Path):
    config = load_config(str(recipe), [f"data.root={root}"])
    return open_loaders(config, ALONE, ["val"])["val"], ToDevice([120.0] * 3, [60.0] * 3, False, torch.device("cpu"))


@pytest.mark.parametrize("name", BY_BATCHES)
def test_statistics_of_a_set_are_numpys_of_all_its_images_in_every_layer(name, recipe, betons):
    """The oracle of the deeper layers: their inputs in training, batch by batch, all together in float64."""
    torch.manual_seed(0)
    loader, to_device = val_of(recipe, betons)
    model = replace_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), name).eval()
    batches = Shuffled(loader, ALONE, 7, seed=3)
    found = moments_of(model, batches, (32, 32), to_device)
    learning, inputs = copy.deepcopy(model).train(), {"0": [], "2": []}
    for place, seen in inputs.items():
        learning.get_submodule(place).register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
    with torch.no_grad():
        for batch in batches.eval_epoch((32, 32)):
            learning(to_device(batch.images, batch.targets)[0])
    for place, seen in inputs.items():
        mean, var = numpy_moments(torch.cat(seen))
        assert found[place].count == loader.samples * torch.cat(seen)[0, 0].numel()
        np.testing.assert_allclose(found[place].mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[place].var, var, rtol=1e-5)
    loader.close()


def test_batches_are_of_images_from_all_over_the_set_each_once_on_any_number_of_ranks(recipe, betons):
    loader, _ = val_of(recipe, betons)
    whole = list(Shuffled(loader, ALONE, 6, seed=0).eval_epoch((32, 32)))
    assert [len(batch.samples) for batch in whole] == [5, 5, 5, 5]
    assert sorted(torch.cat([batch.samples for batch in whole]).tolist()) == [*range(20)]
    assert all(len(batch.targets.unique()) > 1 for batch in whole)  # the set is stored class after class
    for world in (2, 3, 5):
        parts = [
            [*Shuffled(loader, Ranks(rank, world, rank, world), 6, 0).eval_epoch((32, 32))] for rank in range(world)
        ]
        for number, batch in enumerate(whole):
            own = parts[number % world][number // world]
            assert torch.equal(own.samples, batch.samples) and torch.equal(own.images, batch.images)
    other = torch.cat([batch.samples for batch in Shuffled(loader, ALONE, 6, seed=1).eval_epoch((32, 32))])
    assert other.tolist() != torch.cat([batch.samples for batch in whole]).tolist()
    loader.close()


def test_another_order_changes_the_statistics_of_the_images_by_rounding_alone(recipe, betons):
    loader, to_device = val_of(recipe, betons)
    model = replace_norm(nn.Sequential(nn.BatchNorm2d(3)), "bn").eval()
    first, second = (moments_of(model, Shuffled(loader, ALONE, 7, seed), (32, 32), to_device)["0"] for seed in (0, 1))
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(first.var, second.var, rtol=1e-6)
    loader.close()


@pytest.mark.parametrize("name", BY_BATCHES)
def test_a_network_whose_averages_are_of_the_set_is_what_full_statistics_make_of_it(name, recipe, betons):
    """Full adaptation to the images that the averages are of changes nothing."""
    torch.manual_seed(0)
    loader, to_device = val_of(recipe, betons)
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3)), name).eval()
    whole = Shuffled(loader, ALONE, 100, seed=0)
    replace_averages(model, moments_of(model, whole, (32, 32), to_device))
    x = to_device(*next(iter(whole.eval_epoch((32, 32))))[:2])[0]
    with torch.no_grad():
        expected = model(x)
        for kind in ("full:100", "batch:100", "partial:3:100"):
            with Statistics.parse(kind).taken(model, loader, (32, 32), to_device, ALONE, 0):
                torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    loader.close()


@pytest.mark.parametrize("text", ["", "fulll", "partial", "partial:0", "batch:0", "none:3", "full:3:4", "batch:1e3"])
def test_other_words_for_statistics_are_refused(text):
    with pytest.raises(UserError, match=r"--statistics .*: expected none, full"):
        Statistics.parse(text)


def test_statistics_are_named_with_all_that_decides_them():
    names = [str(Statistics.parse(text)) for text in ("none", "full", "batch:64", "partial:16", "partial:16:8")]
    assert names == ["none", "full:128", "batch:64", "partial:16:128", "partial:16:8"]


# ---- by the command ----


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


KINDS = ("none", "full:6", "batch:6", "partial:4:6")


@pytest.mark.slow(reason="three starts of one to three ranks, each of which scores a network 8 times")
def test_adaptation_and_corruptions_are_the_same_on_any_number_of_ranks_and_leave_the_run_alone(finished):
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished.rglob("*") if path.is_file()}
    asked = ("--statistics", *KINDS, "--corrupt", "fog:3", "--seed", 5)
    one, two, three = (succeed("eval.py", finished, *asked, ranks=ranks, torchrun=False) for ranks in (0, 2, 3))
    rows, *others = (rows_of(each.stdout) for each in (one, two, three))
    calibrations = [[row.pop("ece") for row in each] for each in (rows, *others)]  # of logits, whose last bits differ
    assert all(each == pytest.approx(calibrations[0], abs=1e-4) for each in calibrations)
    assert all(each == rows for each in others)
    assert [(row["statistics"], row["corruption"], row["severity"]) for row in rows] == [
        (kind, *shown) for kind in KINDS for shown in (("none", 0), ("fog", 3))
    ]
    assert len({row["loss"] for row in rows}) == len(rows) and {row["images"] for row in rows} == {20}
    layers = len(rows[0]["ratios"])
    assert [row["adapted_layers"] for row in rows[1:3]] == [0, layers] and layers > 10
    assert all(abs(sum(shares.values()) - 1) < 1e-5 for row in rows for shares in row["ratios"].values())
    plain = last_json(succeed("eval.py", finished))
    assert plain.pop("ece") == pytest.approx(calibrations[0][0], abs=1e-4) and plain.items() <= rows[0].items()
    assert "no published mCE stands beside" in one.stderr and "statistics=full:6" in one.stderr
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_statistics_of_a_set_are_the_same_to_the_bit_on_any_number_of_ranks(finished):
    found = [
        succeed("tests/statistics_worker.py", finished, ranks=ranks, torchrun=False).stdout.split()
        for ranks in (0, 2, 3)
    ]
    assert found[0] == found[1] == found[2] and int(found[0][1]) > 10


def test_a_network_without_averages_is_scored_as_it_is_which_is_said(recipe, betons, tmp_path):
    run = tmp_path / "run"
    succeed("train.py", recipe, f"data.root={betons}", f"run_dir={run}", "norm.name=gn", "train.epochs=1")
    done = succeed("eval.py", run, "--statistics", "none", "full", "--corrupt", "contrast", "jpeg:2")
    assert "norm.name=gn keeps no running averages: the network is scored as it is" in done.stderr
    rows = rows_of(done.stdout)
    none, full = rows[:8], rows[8:]
    assert [{**row, "statistics": "none"} for row in full] == none and len(none) == 8
    assert none[-1]["corruption"] == "mean" and none[-1]["of"] == 6 and none[-1]["kind"] == "C-like"
    assert none[-1]["top1"] == pytest.approx(np.mean([row["top1"] for row in none[1:-1]]), abs=1e-5)
    assert "ratios" not in none[0] and {row["adapted_layers"] for row in rows} == {0}


def test_what_cannot_be_adapted_or_corrupted_is_refused_in_one_line(finished):
    assert "--statistics 'fulll': expected none" in refused(command("eval.py", finished, "--statistics", "fulll"))
    assert "--corrupt 'frost': expected all or one of" in refused(command("eval.py", finished, "--corrupt", "frost"))
    assert "expected a severity from 1 to 5" in refused(command("eval.py", finished, "--corrupt", "fog:6"))
    single = refused(command("eval.py", finished, "--statistics", "batch:1"))
    assert "--statistics batch:1" in single and "expected more than one value per channel" in single


@pytest.mark.slow(reason="scores a network by four kinds of statistics on fourteen corruptions")
def test_the_script_scores_each_run_of_a_suite_once(finished, tmp_path):
    (tmp_path / "suite").mkdir()
    shutil.copytree(finished, tmp_path / "suite" / "en-s0")
    line = ["bash", ROOT / "scripts" / "robustness.sh", tmp_path / "suite", "data.workers=1"]
    first, again = (
        subprocess.run(line, env=environment_of(SEVERITIES="3"), capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout.strip().endswith("suite/en-s0") and again.stdout == ""
    rows = rows_of((tmp_path / "suite" / "en-s0" / "robustness.jsonl").read_text())
    assert [row["corruption"] for row in rows] == ["none", *CORRUPTIONS, "mean"] * 4
    tables = (tmp_path / "suite" / "en-s0" / "robustness.txt").read_text()
    assert tables.count("no published mCE") == 4 and tables.count("\nbn ") == 4
    for arguments in ([], [tmp_path / "nowhere"]):
        wrong = subprocess.run([*line[:2], *arguments], capture_output=True, text=True)
        assert wrong.returncode == 2 and "expected the folder of a suite with finished runs" in wrong.stderr


def test_sync_takes_no_part_in_statistics_at_test_time(one_rank):
    layer, x = build_norm("en", 6, sync=True).eval(), images(5, 6, 7, 9)
    alone = copy.deepcopy(layer)
    alone.sync = False
    with torch.no_grad(), batch_statistics(layer), batch_statistics(alone):
        assert torch.equal(layer(x), alone(x))
