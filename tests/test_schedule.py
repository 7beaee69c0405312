"""Learning rate and resolution as functions of the epoch, and weight decay by what a class declares."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from en.config.schema import Config
from en.models import build_model
from en.norm import NORMALIZERS, Normalizer
from en.norm.decay import undecayed
from en.runs.position import Position
from en.training.optimizer import build_optimizer
from en.training.schedule import Schedule, rate_remarks

TREE = {
    "model": {"name": "resnet18"}, "norm": {"name": "en"}, "data": {"root": "x"},
    "train": {"epochs": 100, "batch_size": 256}, "optim": {"lr": 0.4},
}  # fmt: skip


def config(**sections: object) -> Config:
    return Config.model_validate({**TREE, **sections})


def learning_rate(c: Config, epoch: float) -> float:
    return Schedule(peak=c.optim.lr, epochs=c.train.epochs, **c.schedule.model_dump()).rate(epoch)


def test_a_run_resumed_with_another_length_says_what_its_rate_becomes_where_it_falls_over_that():
    then, now = config(train={"epochs": 40, "batch_size": 256}), config(train={"epochs": 14, "batch_size": 256})
    at = Position(epoch=13)
    (line,) = rate_remarks(then, now, 2560, at)
    rates = [learning_rate(c, 13) for c in (now, then)]
    assert rates[0] < 0.1 * rates[1]
    assert line == (
        f"the learning rate goes on at {rates[0]:.4g} (was to be {rates[1]:.4g}): "
        "schedule.name=cosine falls over 14 epochs (was 40)"
    )
    assert rate_remarks(then, then, 2560, at) == []
    step = {"name": "step", "steps": [10]}
    assert rate_remarks(*(c.model_copy(update={"schedule": config(schedule=step).schedule}) for c in (then, now)),
                        2560, at) == []  # fmt: skip


def test_step_divides_at_the_given_epochs():
    c = config(schedule={"name": "step", "steps": [30, 60, 90], "gamma": 0.1})
    rates = [learning_rate(c, epoch) for epoch in (0, 29.999, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004])


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.5), ("linear", 0.5), ("polynomial", 0.25)])
def test_falling_schedules_go_from_the_peak_through_their_middle_to_the_end(name, middle):
    c = config(schedule={"name": name, "final_lr": 0.1, "warmup_epochs": 20})
    assert [learning_rate(c, epoch) for epoch in (20, 60, 100)] == pytest.approx([0.4, 0.1 + 0.3 * middle, 0.1])
    rates = [learning_rate(c, epoch) for epoch in np.linspace(20, 100, 50)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_cosine_equals_torchs_own():
    c = config(schedule={"name": "cosine"})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for epoch in range(100):
        assert learning_rate(c, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("name", ["step", "cosine", "linear", "polynomial"])
def test_warm_up_rises_from_zero_to_the_peak(name):
    c = config(schedule={"name": name, "warmup_epochs": 2.5})
    assert [learning_rate(c, epoch) for epoch in (0, 1, 2.5)] == pytest.approx([0, 0.16, 0.4])


def test_progressive_resizing_rises_to_the_full_resolution_in_multiples():
    progressive = {"start_resolution": 160, "until_epoch": 80, "multiple": 32}
    c = config(
        train={"epochs": 100, "batch_size": 256, "progressive": progressive}, data={"root": "x", "resolution": 224}
    )
    sizes = [c.training_resolution.at(epoch) for epoch in range(100)]
    assert sizes == sorted(sizes) and {*sizes} == {(160, 160), (192, 192), (224, 224)}
    assert sizes[79:] == [(224, 224)] * 21
    assert c.training_resolution.sizes(1) == [(160, 160)]
    assert c.training_resolution.sizes(100) == [(160, 160), (192, 192), (224, 224)]
    assert {config().training_resolution.at(epoch) for epoch in range(100)} == {(224, 224)}


@pytest.mark.parametrize("norm", NORMALIZERS)
@pytest.mark.parametrize("network", ["resnet50", "shufflenet_v2_x0_5", "timm/densenet121"])
def test_weight_decay_spares_every_normalizer_and_bias_and_nothing_else(network, norm):
    model = build_model(network, 10, norm)
    spared = set(undecayed(model))
    inside = {
        f"{place}.{name}"
        for place, m in model.named_modules()
        if isinstance(m, Normalizer)
        for name, _ in m.named_parameters()
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")} - inside
    assert spared == inside | biases
    decayed, kept = build_optimizer(model, **config().optim.model_dump()).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-4, 0.0)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    gates = {id(p) for m in model.modules() if isinstance(m, Normalizer) for p in m.parameters()}
    assert {id(p) for p in decayed["params"]} == {id(w) for w in weights} - gates


def test_decay_on_all_puts_every_parameter_into_one_group():
    model = build_model("resnet18", 10, "en")
    groups = build_optimizer(model, **config(optim={"lr": 0.1, "decay_on": "all"}).optim.model_dump()).param_groups
    assert len(groups) == 1 and len(groups[0]["params"]) == len(list(model.parameters()))


def test_a_class_may_ask_for_decay_on_its_own_parameters(monkeypatch):
    monkeypatch.setattr(NORMALIZERS["gn"], "weight_decayed", frozenset({"weight"}))
    model = build_model("resnet18", 10, "gn")
    assert "bn1.weight" not in set(undecayed(model)) and "bn1.bias" in set(undecayed(model))
