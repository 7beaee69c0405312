"""Networks are opened, compared and summed up as they were built; options go with weights."""

import copy
import json

import pytest
import torch
from commands import command, last_json, refused, succeed
from norm_cases import every_norm, images
from torch import nn

from en.config.reading import load_config
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.evaluation.trained import open_trained
from en.norm import AS_PUBLISHED, NORMALIZERS, build_norm, norm_options, replace_norm, without_options
from en.norm.built import in_one, layers_as_built, rebuild
from en.norm.registry import options_of
from en.runs import checkpoint
from en.suites.plan import plan

ALONE = Ranks(0, 1, 0, 1)
RECIPE = """
model: {name: NAME}
norm: {name: NORM}
data: {root: ROOT, resolution: 32, workers: 1}
train: {epochs: 1, batch_size: 48}
optim: {lr: 0.005}
device: cpu
"""
FAMILIES = {  # networks by what their library's layers have for eps and momentum
    "mobilenet_v3_small": (1e-3, 0.01),
    "mnasnet0_5": (1e-5, 1 - 0.9997),
    "timm/tf_mobilenetv3_small_minimal_100": (1e-3, 0.1),
    "timm/test_efficientnet": (1e-5, 0.1),
}
NOT_OF_WEIGHTS = {"momentum", "sync", "start"}  # options that change how a layer learns, and not what it computes
OTHERS = {
    "normalizers": ["ln", "in", "bn"], "groups": 3, "eps": 1e-3, "min_pixels": 20, "gate_pixels": 20, "reduction": 3,
    "hidden": 7, "convolution": False, "activation": "relu", "shared_affine": True, "ratios": "relative",
    "mix": "statistics", "steps": 9,
}  # fmt: skip


@pytest.fixture
def recipe(betons, tmp_path):
    def write(model: str, norm: str = "bn") -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("NAME", model).replace("NORM", norm).replace("ROOT", str(betons)))
        return str(path)

    return write


@pytest.mark.parametrize("model", FAMILIES)
def test_a_network_is_scored_resumed_and_summed_up_with_the_eps_and_momentum_of_its_library(model, recipe, tmp_path):
    run, config = tmp_path / "run", recipe(model)
    eps, momentum = FAMILIES[model]
    succeed("train.py", config, f"run_dir={run}")
    log, found = json.loads((run / "log.jsonl").read_text()), last_json(succeed("eval.py", run))
    assert {name: log[name] for name in ("loss", "top1")} == {name: found[name] for name in ("loss", "top1")}
    assert json.loads((run / "summary.json").read_text())["norm_options"] == {
        "eps": eps, "momentum": pytest.approx(momentum), "sync": False
    }  # fmt: skip
    succeed("train.py", config, "--resume", run, "train.epochs=2", f"norm.eps={eps}")
    for key, value in {"eps": 0.25, "momentum": 0.7}.items():
        line = refused(command("train.py", config, "--resume", run, "train.epochs=3", f"norm.{key}={value}"))
        assert f"norm.{key}={value}: expected what" in line
    done = succeed("eval.py", run, "norm.eps=0.25")
    assert f"evaluates with norm.eps=0.25 (trained with {eps})" in done.stderr


@pytest.fixture(scope="module")
def of_en(betons, tmp_path_factory):
    """A finished run of a ResNet with EN."""
    folder = tmp_path_factory.mktemp("en")
    (folder / "recipe.yaml").write_text(
        RECIPE.replace("NAME", "timm/test_resnet").replace("NORM", "en, hidden: 7").replace("ROOT", str(betons))
    )
    succeed("train.py", folder / "recipe.yaml", f"run_dir={folder / 'run'}")
    return folder


def rewritten(folder, tmp_path, **changes):
    saved = checkpoint.load(folder / "run" / "last.pt").model_copy(update=changes)
    checkpoint.save(saved, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def test_layers_of_different_eps_in_one_network_each_keep_their_own(of_en, tmp_path):
    saved = checkpoint.load(of_en / "run" / "last.pt")
    norms, first = copy.deepcopy(saved.norms), next(iter(saved.norms))
    norms[first]["eps"], norms[first]["gate_pixels"] = 0.25, 9
    weights = {name: value for name, value in saved.model.items() if not name.startswith(f"{first}._extra")}
    opened = open_trained(str(rewritten(of_en, tmp_path, norms=norms, model=weights)), [], ALONE, ["val"])
    opened.close()
    assert layers_as_built(opened.model) == norms
    assert in_one(norms)["eps"] == {"1e-05": len(norms) - 1, "0.25": 1} and in_one(norms)["hidden"] == 7
    assert opened.model.get_submodule(first).added_eps == 0.25


def test_defaults_of_another_day_stay_those_of_a_run(of_en, tmp_path):
    """min_pixels=9 and gate_pixels=2 stand for defaults that this version has no more."""
    saved = checkpoint.load(of_en / "run" / "last.pt")
    norms = {place: {**options, "min_pixels": 9, "gate_pixels": 2} for place, options in saved.norms.items()}
    path = rewritten(of_en, tmp_path, norms=norms, model=without_options(saved.model))
    opened = open_trained(str(path), ["norm.gate_pixels=3"], ALONE, ["val"])
    opened.close()
    wanted = {place: {**options, "gate_pixels": 3} for place, options in norms.items()}
    assert layers_as_built(opened.model) == wanted


def test_options_in_a_checkpoint_that_no_layer_takes_are_refused_by_their_place(of_en, tmp_path):
    saved = checkpoint.load(of_en / "run" / "last.pt")
    first = next(iter(saved.norms))
    for options in ({"eps": -1.0}, {"future": 3}):
        norms = {**saved.norms, first: {**saved.norms[first], **options}}
        with pytest.raises(UserError, match=rf"last.pt: norms.{first}: .*{next(iter(options))}"):
            open_trained(str(rewritten(of_en, tmp_path, norms=norms)), [], ALONE, ["val"])


def test_a_class_of_ones_own_is_left_out_of_what_was_built():
    class Own(NORMALIZERS["en"]):
        pass

    assert layers_as_built(nn.Sequential(Own(6), build_norm("ln", 6))) == {"1": {"eps": 1e-5}}


def test_a_checkpoint_of_the_format_before_says_what_is_assumed(recipe, tmp_path):
    config, run = recipe("mobilenet_v3_small"), tmp_path / "run"
    succeed("train.py", config, f"run_dir={run}")
    scores, path = last_json(succeed("eval.py", run)), run / "last.pt"
    content = torch.load(path, weights_only=True)
    norm = {"name": "bn", "eps": 1e-5, "momentum": 0.1, "sync": False}
    content = {**content, "format": 3, "config": {**content["config"], "norm": norm}}
    del content["norms"]
    torch.save(content, tmp_path / "old.pt")
    done = succeed("eval.py", tmp_path / "old.pt")
    assert last_json(done) == scores
    assert (
        "of an earlier version: eps, momentum, sync of its normalizers are taken to be the network's own" in done.stderr
    )


def test_a_run_of_format_4_resumes(recipe, tmp_path):
    config, run = recipe("mobilenet_v3_small"), tmp_path / "run"
    succeed("train.py", config, f"run_dir={run}")
    content = torch.load(run / "last.pt", weights_only=True)
    del content["evaluated"], content["summary"]["details"], content["config"]["optim"]["head_lr_factor"]
    del content["config"]["evaluation"], content["config"]["train"]["steps"]
    (run / "checkpoints" / "step_00001_00000000.pt.sha256").unlink()
    torch.save({**content, "format": 4}, run / "checkpoints" / "step_00001_00000000.pt")
    done = succeed("train.py", config, "--resume", run, "train.epochs=2")
    told = [line for line in done.stderr.splitlines() if "(was" in line]
    assert [line.partition(" (was")[0] for line in told if "the learning rate" not in line] == [
        "resumes with train.epochs=2"
    ]
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_evaluation_says_what_it_does_otherwise_than_training(of_en):
    keys = ["norm.min_pixels=1", "data.resolution=64", "data.eval_resolution=64", "task.centre_share=1.0"]
    told = [line for line in succeed("eval.py", of_en / "run", *keys).stderr.splitlines() if "evaluates with" in line]
    assert told == [
        "evaluates with norm.min_pixels=1 (trained with 65)",
        "evaluates with task.centre_share=1.0 (trained with 0.875)",
        "evaluates with data.resolution=64 (trained with 32)",
        "evaluates with data.eval_resolution=64 (trained with None)",
    ]
    assert "evaluates" not in succeed("eval.py", of_en / "run", "norm.min_pixels=65", "norm.hidden=7").stderr


@pytest.mark.parametrize("name", ["sn", "ssn", "en"])
def test_every_option_that_changes_what_weights_compute_goes_with_them_and_is_compared(name):
    kind = NORMALIZERS[name]
    assert set(kind.deciding_options) == set(norm_options(name)) - NOT_OF_WEIGHTS
    for key in kind.deciding_options:
        of_gn = {"normalizers": ["bn", "gn"]} if key == "groups" else {}
        layer, other = build_norm(name, 6, **of_gn), build_norm(name, 6, **{**of_gn, key: OTHERS[key]})
        model, twin = nn.Sequential(layer), nn.Sequential(other)
        with pytest.raises(RuntimeError, match=rf"0: weights of .*{key}=.* for a layer of .*{key}="):
            twin.load_state_dict(model.state_dict(), strict=False)
        if all(a.shape == b.shape for a, b in zip(layer.parameters(), other.parameters(), strict=False)) and (
            key not in ("convolution", "shared_affine", "mix")
        ):
            twin.load_state_dict(without_options(model.state_dict()))


@pytest.mark.parametrize("name", ["sn", "ssn", "en"])
def test_weights_without_options_load_and_damaged_ones_are_refused(name):
    layer = build_norm(name, 6)
    layer(images(2, 6, 9, 9))
    state, other = layer.state_dict(), build_norm(name, 6)
    assert state["_extra_state"].dtype == torch.uint8
    other.load_state_dict({key: value for key, value in state.items() if key != "_extra_state"})
    other.load_state_dict(state)
    for damaged in (torch.zeros(3), torch.zeros(3, dtype=torch.uint8), torch.full((2,), 49, dtype=torch.uint8), "en"):
        with pytest.raises(RuntimeError, match="_extra_state: expected options of the layer as JSON"):
            other.load_state_dict({**state, "_extra_state": damaged})


def test_the_published_form_does_not_take_the_weights_of_the_default():
    model, published = (
        replace_norm(nn.Sequential(nn.BatchNorm2d(6)), "en", **more) for more in ({}, AS_PUBLISHED["en"])
    )
    with pytest.raises(RuntimeError, match=r"0: weights of .*min_pixels=65.* for a layer of .*min_pixels=1"):
        published.load_state_dict(model.state_dict())


@every_norm
def test_batch_normalizations_keys_are_torchs_and_single_normalizers_keep_theirs(name):
    keys = set(build_norm(name, 6).state_dict())
    if name == "bn":
        assert keys == set(nn.BatchNorm2d(6).state_dict())
    assert ("_extra_state" in keys) == (name in ("sn", "ssn", "en"))


@every_norm
def test_a_layer_rebuilt_from_its_options_computes_the_same(name):
    torch.manual_seed(0)
    options = {"eps": 0.25} | ({"momentum": 0.7} if "momentum" in norm_options(name) else {})
    model = replace_norm(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)), name, **options)
    model(images(4, 3, 5, 5))
    twin = rebuild(replace_norm(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)), name), layers_as_built(model))
    assert layers_as_built(twin) == layers_as_built(model) == {"1": options_of(model[1])}
    assert json.loads(json.dumps(layers_as_built(model))) == layers_as_built(model)
    twin.load_state_dict(model.state_dict())
    x = images(4, 3, 5, 5, seed=2)
    torch.testing.assert_close(twin(x), model(x))
    torch.testing.assert_close(list(twin.buffers()), list(model.buffers()))


def test_a_suite_goes_on_with_runs_whose_eps_is_their_librarys(recipe, tmp_path):
    config = load_config(recipe("mobilenet_v3_small"), [])
    assert config.norm.options == {}
    suite = tmp_path / "suite.yaml"
    suite.write_text("base: recipe.yaml\nvariants: {bn: {norm.name: bn}}\n")
    (run,) = plan(suite, tmp_path / "out", [])
    succeed("train.py", run.base, *run.overrides, "--resume", "auto")  # as the suite would start it, but warm
    again = succeed("scripts/ablate.py", suite, "--out", tmp_path / "out")
    assert "1 runs, 1 finished" in again.stdout + again.stderr
    suite.write_text("base: recipe.yaml\nvariants: {bn: {norm.name: bn, norm.eps: 1e-5}}\n")
    line = refused(command("scripts/ablate.py", suite, "--out", tmp_path / "out"))
    assert "norm.eps=0.001: expected 1e-05" in line
