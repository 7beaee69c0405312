"""Runs that are told in steps, and evaluated in the middle of an epoch."""

import json
import os
import shutil
import signal
from pathlib import Path

import disc_task
import pytest
import torch
from commands import succeed
from conftest import ended
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from en.config.reading import load_config
from en.data.sources import registry
from en.errors import UserError
from en.reports.files import write_report
from en.reports.runs import read_run
from en.runs import checkpoint
from en.runs.contents import position_of
from en.runs.course import Course
from en.runs.position import Position
from en.tasks import TASKS
from en.training.run import TrainingRun
from en.training.signals import StopRequest

RECIPE = """
model: {name: two convolutions}
norm: {name: en, hidden: 2}
task: {name: dying}
data: {root: unset, loader: folder, resolution: [16, 24], workers: 0}
train: {steps: 11, batch_size: 6, ema_decay: 0.5}
optim: {lr: 0.2}
schedule: {warmup_epochs: 0.5}
evaluation: {every_steps: 3}
checkpoint: {every_steps: 1, keep: 99}
device: cpu
"""
EPOCH = 4  # steps


class Dying(disc_task.Discs):
    """The task of the discs, whose process is killed in evaluation while there is a file `die` in its folder."""

    name: str = "dying"

    def predict(self, network, images):
        if Path("die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(network, images)


@pytest.fixture(autouse=True)
def discs(monkeypatch, tmp_path):
    monkeypatch.setitem(TASKS, "discs", disc_task.Discs)
    monkeypatch.setitem(TASKS, "dying", Dying)
    monkeypatch.setattr(registry, "FORMS", registry.FORMS)
    disc_task.register()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return disc_task.write_discs(tmp_path_factory.mktemp("discs") / "discs", {"train": 6 * EPOCH + 2, "val": 7})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def train(images, tmp_path):
    def run(folder: Path, *overrides: str) -> Path:
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        options = [f"data.root={images}", f"run_dir={folder}", *overrides]
        TrainingRun(
            load_config(str(tmp_path / "recipe.yaml"), options), "recipe.yaml", StopRequest(), drop_later=True
        ).train()
        return folder

    return run


@pytest.fixture
def whole(train, place):
    """The run that nobody touched, made once."""
    return place / "whole" if (place / "whole").exists() else train(place / "whole")


def rows(run: Path, name: str = "log.jsonl") -> list[dict[str, object]]:
    """Without the times."""
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait", "images_per_second")} for row in found]


def same(run: Path, other: Path) -> bool:
    """Compares weights at the end and logs of two runs."""
    ours, theirs = (checkpoint.load(each / "last.pt") for each in (run, other))
    weights = all(torch.equal(value, theirs.model[name]) for name, value in ours.model.items())
    return weights and all(rows(run, name) == rows(other, name) for name in ("log.jsonl", "ratios.jsonl"))


def test_a_course_counts_steps_over_epochs():
    course = Course(4, 11 / 4, 3, True)
    assert course.steps == 11 and course.at(8) == Position(epoch=2) and course.done(Position(epoch=1, step=4)) == 8
    due = [0]
    while due[-1] < course.steps:
        due.append(course.next_evaluation(due[-1]))
    assert due == [0, 3, 6, 9, 11] and course.key(6) == {"step": 6, "epoch": 1.5}
    assert Course(4, 2, None, False).next_evaluation(4) == 8 and Course(4, 2, None, False).key(8) == {"epoch": 2}


def test_a_run_of_steps_is_evaluated_within_epochs_and_its_rows_are_keyed_by_steps(whole, tmp_path):
    log = rows(whole)
    assert [(row["step"], row["epoch"]) for row in log] == [(3, 0.75), (6, 1.5), (9, 2.25), (11, 2.75)]
    assert [(row["step"], row["epoch"]) for row in rows(whole, "ratios.jsonl")] == [
        (r["step"], r["epoch"]) for r in log
    ]
    events = EventAccumulator(str(whole)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/miou")] == [
        (row["step"], pytest.approx(row["miou"], rel=1e-5)) for row in log
    ]
    summary, saved = json.loads((whole / "summary.json").read_text()), checkpoint.load(whole / "last.pt")
    assert (summary["epochs"], summary["epochs_done"]) == (2.75, 2.75)
    best = max(log, key=lambda row: row["miou"])
    assert summary["best_score"] == best["miou"] and summary["best_epoch"] == best["epoch"]
    assert checkpoint.load(whole / "best.pt").position == position_of(saved.best)
    assert saved.position == Position(epoch=2, step=3) and saved.last_evaluation == saved.position
    run = read_run(whole)
    assert run.is_finished and run.status == "finished"
    write_report([str(whole)], tmp_path / "report")
    assert "| mIoU % |" in (tmp_path / "report" / "report.md").read_text()


def test_evaluation_within_epochs_changes_no_bit_of_training(train, whole, tmp_path):
    often = train(tmp_path / "often", "evaluation.every_steps=1")
    ended_alone = train(tmp_path / "after_epochs", "evaluation.every_steps=null")
    assert [row["step"] for row in rows(ended_alone)] == [4, 8, 11]
    states = [checkpoint.load(run / "last.pt").model for run in (whole, often, ended_alone)]
    assert all(torch.equal(value, other[name]) for other in states[1:] for name, value in states[0].items())


@pytest.mark.parametrize("step", range(1, 11))
def test_a_run_of_steps_resumes_to_the_bit_from_each_of_its_checkpoints(train, whole, tmp_path, step):
    position = Course(EPOCH, 3, None, True).at(step)
    path = checkpoint.step_path(whole, position)
    if not path.exists():
        path = checkpoint.step_path(whole, Position(epoch=position.epoch - 1, step=EPOCH))
    run = shutil.copytree(whole, tmp_path / "run")
    assert same(train(run, f"resume={run / 'checkpoints' / path.name}"), whole)


def test_a_run_of_steps_resumes_to_the_bit_on_two_ranks(images, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("dying", "discs"))

    def run(folder, *overrides):
        line = ["train.py", tmp_path / "recipe.yaml", f"data.root={images}", f"run_dir={folder}", *overrides]
        succeed("tests/disc_task.py", *line, ranks=2)
        return folder

    whole = run(tmp_path / "whole")
    again = shutil.copytree(whole, tmp_path / "again")
    older = again / "checkpoints" / "step_00001_00000003.pt"
    assert same(run(again, f"resume={older}", "--drop-later"), whole)


def test_a_run_that_is_killed_in_evaluation_need_not_train_again(train, whole, tmp_path, forked, capfd):
    Path("die").touch()
    assert ended(forked(lambda: train(tmp_path / "run"))) == -signal.SIGKILL
    saved = checkpoint.load(checkpoint.step_paths(tmp_path / "run")[0])
    assert saved.position == Position(step=3) and saved.summary is None and rows(tmp_path / "run") == []
    Path("die").unlink()
    assert same(train(tmp_path / "run", "resume=auto"), whole)
    assert rows(tmp_path / "run")[0]["step"] == 3


def test_a_finished_run_goes_on_to_more_steps(train, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    train(run, "resume=auto", "train.steps=13", "schedule.warmup_epochs=0.5")
    assert [row["step"] for row in rows(run)] == [3, 6, 9, 11, 12, 13]
    with pytest.raises(UserError, match=r"train.steps=12: expected at least 13"):
        train(run, "resume=auto", "train.steps=12")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epochs=3"], "train.epochs=3 and steps=11: expected a number of one of them"),
        (["train.steps=null"], "train.epochs=null and steps=null: expected a number of one of them"),
        (["schedule.warmup_epochs=3"], "schedule.warmup_epochs=3.0: expected at most 2.75 epochs"),
    ],
)
def test_lengths_that_cannot_be_are_refused_in_one_line(train, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.steps=null", "train.epochs=3"], "train.steps=None: expected what .* began with, 11"),
        (["evaluation.every_steps=2"], "evaluation.every_steps=2: expected what .* began with, 3"),
        (["train.batch_size=12"], "train.batch_size=12: expected"),
    ],
)
def test_a_run_of_steps_resumes_as_one(train, whole, tmp_path, overrides, words):
    run = shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UserError, match=words):
        train(run, "resume=auto", *overrides)
