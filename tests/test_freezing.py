"""Parts of a network that stay as they are while the rest learns, with every normalizer, ranks and kills."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import command, refused, succeed
from norm_cases import PHOTOS, every_norm, images, network
from torch import Tensor, nn

from en.build import build_network, check_batch_statistics, freeze_network
from en.config.reading import load_config
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.models.freezing import freeze_parts
from en.norm import Normalizer, freeze, replace_norm, unfreeze
from en.runs import checkpoint
from en.training.learner import Learner, build_learner

ONE = Ranks(0, 1, 0, 1)
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: en}
data: {root: unset, resolution: 32, workers: 1}
train: {epochs: 1, batch_size: 24, ema_decay: 0.5, freeze: [conv1, bn1, "layer[12]"]}
optim: {lr: 0.05, weight_decay: 0.1, decay_on: all}
schedule: {name: linear}
checkpoint: {every_steps: 2, keep: 9}
device: cpu
"""
STEM = ("conv1.", "bn1.", "layer1.", "layer2.")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def learner_of(recipe: str, *overrides: str) -> Learner:
    config = load_config(recipe, list(overrides))
    model = build_network(config, 4)
    freeze_network(config, model)
    return build_learner(config, model, torch.device("cpu"), ONE)


def take_steps(learner: Learner, steps: int = 3) -> None:
    learner.forward.train()
    for step in range(steps):
        learner.backward(learner(images(8, 3, 32, 32, seed=step)).square().mean())
        learner.step(0.1)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def is_count(name: str) -> bool:
    """Tells whether a batch changes it: running averages, and the batches of ssn."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked", "trained_batches")


@every_norm
@pytest.mark.parametrize("statistics", ["null", "[]", '["*"]'], ids=["frozen", "live", "all"])
def test_frozen_weights_stay_to_the_bit_and_their_averages_as_asked(recipe, name, statistics):
    learner = learner_of(recipe, f"norm.name={name}", f"train.freeze_statistics={statistics}")
    before = state_of(learner.model)
    assert learner.ema is not None
    take_steps(learner)
    found = changed(before, learner.model.state_dict())
    inside = {key for key in before if key.startswith(STEM)}
    counts = {key for key in before if is_count(key)}
    assert found & inside <= counts and "fc.weight" in found and "layer3.0.conv1.weight" in found
    follow = {"null": counts - inside, "[]": counts, '["*"]': set()}[statistics]
    assert found & counts == follow and changed(before, learner.ema.module.state_dict()) <= found
    averaged = learner.ema.module.state_dict()
    assert all(torch.equal(averaged[key], before[key]) for key in inside - follow)


@every_norm
def test_the_optimizer_has_neither_decay_nor_momentum_for_what_is_frozen(recipe, name):
    learner = learner_of(recipe, f"norm.name={name}", "optim.head_lr_factor=10", "optim.momentum=0.9")
    take_steps(learner, 1)
    held = {id(parameter) for group in learner.optimizer.param_groups for parameter in group["params"]}
    for key, parameter in learner.model.named_parameters():
        assert (id(parameter) in held) == (not key.startswith(STEM)), key
        assert not key.startswith(STEM) or (parameter.grad is None and parameter not in learner.optimizer.state)
    assert {group.get("lr_factor") for group in learner.optimizer.param_groups} == {None, 10.0}


@every_norm
def test_statistics_alone_are_frozen_in_evaluation_mode_and_thawed_again(name):
    model = replace_norm(network(), name).train()
    model(PHOTOS)
    freeze(model, parameters=False)
    before = state_of(model)
    layers = [layer for layer in model.modules() if isinstance(layer, Normalizer)]
    model.train()(images(4, 3, 32, 32)).square().sum().backward()
    assert not any(layer.training for layer in layers) and model.training
    assert changed(before, model.state_dict()) == set()
    assert all(layer.weight.grad is not None for layer in layers)
    unfreeze(model)
    assert all(layer.training and layer.weight.requires_grad for layer in layers)


WRONG = [
    ("train.freeze=[laver1]", "train.freeze='laver1': expected the name of a module, or a pattern for some (did you"),
    ("train.freeze=[layer1,zzz]", "train.freeze='zzz': expected the name of a module, or a pattern for some (as conv"),
    ("train.freeze=['features.*']", "train.freeze='features.*': expected the name of a module"),
    ("train.freeze=['*']", "train.freeze=['*']: expected some parameter that is left to learn"),
    ("train.freeze_statistics=[fc]", "train.freeze_statistics=['fc']: expected modules with normalizers in them"),
    ("train.freeze_statistics=[bn]", "train.freeze_statistics='bn': expected the name of a module"),
    ("train.freeze=layer1", "train.freeze='layer1': expected a list"),
    ("train.freeze=[3]", "train.freeze.0=3: expected a string"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_name_of_no_module_is_refused_with_the_nearest_ones(recipe, override, words):
    with pytest.raises(UserError) as refusal:
        learner_of(recipe, override)
    assert words in str(refusal.value)


def test_names_and_patterns_choose_modules_with_all_that_is_in_them():
    model = replace_norm(nn.Sequential(network(), network(), nn.BatchNorm1d(4), nn.Linear(4, 2)), "en")
    frozen = freeze_parts(model, ["0.*", "2"], ["1", "2"])
    assert {name.partition(".")[0] for name in frozen.parameters} == {"0", "2"}
    assert frozen.normalizers == ["1.1", "1.4", "2"] and not model.train()[2].training and model[0][1].training
    line = f"frozen: parameters ({len(frozen.parameters)} tensors), statistics of normalizers (3)"
    assert frozen.lines() == [line]
    assert freeze_parts(nn.Linear(1, 1), [], None).lines() == []


def test_frozen_statistics_need_no_second_value_in_a_batch(recipe):
    for freeze_all, accepted in (("null", False), ('["*"]', True)):
        options = ["norm.name=bn", "train.batch_size=1", f"train.freeze_statistics={freeze_all}", "train.freeze=null"]
        config = load_config(recipe, options)
        model = build_network(config, 4)
        freeze_network(config, model)
        if accepted:
            check_batch_statistics(config, ONE, model)
        else:
            with pytest.raises(UserError, match="one value per channel"):
                check_batch_statistics(config, ONE, model)


def train(recipe: str, run: Path, data: Path, *options: str, ranks: int = 0) -> checkpoint.Checkpoint:
    succeed("train.py", recipe, f"data.root={data}", f"run_dir={run}", *options, ranks=ranks)
    return checkpoint.load(run / "last.pt")


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_with_frozen_parts_keeps_them_and_resumes_to_the_bit(recipe, betons, tmp_path, ranks):
    whole = train(recipe, tmp_path / "whole", betons, ranks=ranks)
    fresh = build_network(load_config(recipe, []), 4).state_dict()
    for state in (whole.model, whole.ema):
        assert all(torch.equal(value, fresh[key]) for key, value in state.items() if key.startswith(STEM))
        assert any(not torch.equal(value, fresh[key]) for key, value in state.items() if not key.startswith(STEM))
    middle = checkpoint.step_path(tmp_path / "whole", whole.position.model_copy(update={"epoch": 0, "step": 2}))
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    for path in (middle, checkpoint.sum_path(middle)):
        shutil.copy2(path, tmp_path / "again" / "checkpoints")
    again = train(recipe, tmp_path / "again", betons, "resume=auto", ranks=ranks)
    for ours, theirs in ((whole.model, again.model), (whole.ema, again.ema)):
        assert changed(ours, theirs) == set()
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["params"] == sum(value.numel() for value in build_network(load_config(recipe, []), 4).parameters())


def test_what_is_frozen_cannot_change_in_the_course_of_a_run(recipe, betons, tmp_path):
    train(recipe, tmp_path / "run", betons)
    for option, words in (
        ("train.freeze=[conv1]", "train.freeze=['conv1']: expected what"),
        ("train.freeze_statistics=[]", "train.freeze_statistics=[]: expected what"),
    ):
        line = [recipe, f"data.root={betons}", "train.epochs=2", option, "--resume", tmp_path / "run"]
        assert words in refused(command("train.py", *line))
