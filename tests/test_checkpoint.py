"""A checkpoint from anywhere is whole and of this package, or refused in one line."""

import argparse
import copy
import io
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_loop import CASES
from timm.utils import CheckpointSaver
from torch import nn

from en.build import build_network
from en.config.reading import validate
from en.config.schema import Config
from en.distributed.ranks import Ranks
from en.errors import RunError, UserError
from en.runs import checkpoint
from en.runs.contents import Checkpoint
from en.runs.course import Course
from en.runs.folder import FILES, RunFolder
from en.runs.position import Position
from en.training.learner import Learner, build_learner

ONE = Ranks(0, 1, 0, 1)


@pytest.fixture(scope="session")
def whole(untouched) -> Path:
    """A run's newest checkpoint in the middle of an epoch, and its last.pt."""
    return untouched(CASES[0])


@pytest.fixture(scope="session")
def content(whole: Path) -> dict[str, Any]:
    midway = min((whole / "checkpoints").glob("step_*_0000000[1-9].pt"))
    found: dict[str, Any] = torch.load(midway, weights_only=True)
    return found


JUNK = [None, 3, -1, 2**70, 1.5, float("nan"), "x", [], [3], {}, {"a": 1}, torch.zeros(2), [{}], {"epoch": "one"}, True]


@pytest.mark.parametrize("part", [name for name in Checkpoint.model_fields if name != "digest"])
def test_a_part_that_is_missing_or_of_another_kind_is_refused_by_its_name(content, tmp_path, part):
    small = {"model": {"w": torch.zeros(2)}, "ema": None, "optimizer": {"state": {}}, "ranks": []}
    kinds = 0
    for number, junk in enumerate([..., *JUNK]):
        changed = {name: value for name, value in {**content, **small}.items() if name != part or junk is not ...}
        if junk is not ...:
            changed[part] = junk
        path = tmp_path / f"{number}.pt"
        torch.save(changed, path)
        try:
            checkpoint.load(path)
        except UserError as error:
            assert part in str(error) and "\n" not in str(error)
            kinds += 1
    assert kinds >= 8


def altered(saved: Checkpoint, part: str, value: object) -> Checkpoint:
    return Checkpoint.model_validate({**saved.content(), part: value})


def resumed(saved: Checkpoint) -> nn.Module:
    learner = learner_of(validate(saved.config, "x"), len(saved.classes))
    learner.load_state_dict(saved, ONE, Path("some.pt"))
    return learner.model


def learner_of(config: Config, classes: int) -> Learner:
    return build_learner(config, build_network(config, classes), torch.device("cpu"), ONE)


def test_state_that_does_not_fit_is_refused_before_the_first_step(content):
    saved = Checkpoint.model_validate(content)
    resumed(saved)
    rank = saved.ranks[0]
    name = next(iter(rank["buffers"][0]))
    short = copy.deepcopy(rank) | {"buffers": [{**rank["buffers"][0], name: torch.zeros(1)}]}
    missing = copy.deepcopy(rank) | {"buffers": [{}]}
    optimizer = copy.deepcopy(saved.optimizer)
    optimizer["state"][0]["momentum_buffer"] = torch.zeros(3)
    whole_numbers, endless = copy.deepcopy(saved.optimizer), copy.deepcopy(saved.optimizer)
    whole_numbers["state"][0]["momentum_buffer"] = whole_numbers["state"][0]["momentum_buffer"].to(torch.int8)
    endless["state"][0]["momentum_buffer"].fill_(torch.inf)
    nameless = copy.deepcopy(saved.optimizer)
    nameless["state"][0] = {}
    odd = [("ranks", [short]), ("ranks", [missing]), ("ranks", [rank | {"buffers": []}]), ("optimizer", optimizer)]
    odd += [
        ("optimizer", nameless),
        ("optimizer", {}),
        ("optimizer", {"state": {99_999: {"momentum_buffer": torch.zeros(1)}}}),
    ]
    odd += [("optimizer", whole_numbers), ("optimizer", endless)]
    odd += [("optimizer", {"state": 3}), ("model", {}), ("ema", {"weight": torch.zeros(1)})]
    for part, value in odd:
        with pytest.raises(UserError, match=r"^some.pt: expected the (state|weights)") as refusal:
            resumed(altered(saved, part, value))
        assert "\n" not in str(refusal.value)


def in_ranks(saved: Checkpoint, **losses: object) -> list[dict[str, Any]]:
    """Gives the states of the ranks other losses."""
    return [rank | {"losses": rank["losses"] | losses} for rank in saved.ranks]


def without_momentum(saved: Checkpoint, number: int) -> dict[str, Any]:
    state = {other: value for other, value in saved.optimizer["state"].items() if other != number}
    return saved.optimizer | {"state": state}


GAPS: dict[str, tuple[Callable[[Checkpoint], dict[str, object]], str]] = {
    "a momentum": (lambda saved: {"optimizer": without_momentum(saved, 3)}, r"no momentum of layer1\.0\..*, number 3"),
    "all momenta": (lambda saved: {"optimizer": saved.optimizer | {"state": {}}}, r"no momentum of conv1\.0\.weight"),
    "averages": (lambda saved: {"ema": None}, r"ema is None: expected averages by its train\.ema_decay=0\.9"),
    "a step more": (
        lambda saved: {"position": Position(epoch=saved.position.epoch, step=saved.position.step + 1)},
        r"ranks\.0\.losses\.steps is (\d+): expected \d+, position.step=\d+ without the 0",
    ),
    "a counted step": (lambda saved: {"ranks": in_ranks(saved, steps=0)}, r"ranks\.0\.losses\.steps is 0: expected"),
    "steps left out": (lambda saved: {"ranks": in_ranks(saved, left_out=1)}, r"ranks\.0\.losses\.left_out is 1"),
    "a note": (
        lambda saved: {"ranks": in_ranks(saved, notes=[{"epoch": saved.position.epoch + 1, "left_out": "not finite"}])},
        r"ranks\.0\.losses\.steps is .*without the 1 that were left out",
    ),
    "a rank": (
        lambda saved: {"circumstances": saved.circumstances | {"ranks": 2}},
        r"ranks is a list of 1: expected 2 after step \d+ of epoch \d+",
    ),
    "all ranks": (lambda saved: {"ranks": []}, r"ranks is a list of 0: expected 1"),
    "another rank's steps": (
        lambda saved: {
            "ranks": [*saved.ranks, *in_ranks(saved, steps=saved.position.step + 1)],
            "circumstances": saved.circumstances | {"ranks": 2},
        },
        r"ranks\.1\.losses\.steps is \d+: expected",
    ),
    "a network's buffers": (
        lambda saved: {"ranks": [rank | {"buffers": rank["buffers"][:1]} for rank in saved.ranks]},
        r"ranks\.0\.buffers is a list of 1: expected 2",
    ),
    "labels that were not given": (
        lambda saved: {"ranks": in_ranks(saved, outcomes=[1, 0, 0, 0, 0])},
        r"losses\.outcomes are there: expected none, of a run without data\.labels",
    ),
    "more samples than the steps had": (
        lambda saved: {"ranks": in_ranks(saved, outcomes=[9999, 0, 0, 0, 0]), "data": {**saved.data, "labels": "ab"}},
        r"losses\.outcomes add up to 9999: expected \d+ at most, the samples of the steps",
    ),
    "more steps told": (
        lambda saved: {"ranks": in_ranks(saved, told=(1.0, 99))},
        r"ranks\.0\.losses\.told is of 99 steps: expected the same on all, \d+ at most",
    ),
    "images in floating point": (
        lambda saved: {"ranks": in_ranks(saved, images=torch.zeros(2, 3, 8, 8))},
        r"losses\.images are torch\.float32 of \[2, 3, 8, 8\]: expected bytes of \[N, 3, H, W\]",
    ),
    "images without end": (
        lambda saved: {"ranks": in_ranks(saved, images=torch.zeros(1, 1, dtype=torch.uint8).expand(99, 3, 8, 8))},
        r"losses\.images are torch\.uint8 of \[99, 3, 8, 8\]: expected .*few",
    ),
    "a scaler": (
        lambda saved: {"config": precise(saved, "float16")},
        r"scaler lacks scale, .*: expected that of its train\.precision=float16",
    ),
    "the best score": (lambda saved: {"best": None}, r"best is None: expected the best score up to step \d+ of epoch"),
    "a later best score": (
        lambda saved: {"best": {"score": 1.0, "epoch": 9}},
        r"best\.epoch is 9: expected 1 to \d+, the finished epochs",
    ),
}


def precise(saved: Checkpoint, precision: str) -> dict[str, Any]:
    config = copy.deepcopy(saved.config)
    config["train"]["precision"] = precision
    return config


@pytest.mark.parametrize("gap", GAPS)
def test_a_part_that_a_resumed_run_would_miss_is_refused_by_name(content, gap):
    change, words = GAPS[gap]
    saved = Checkpoint.model_validate(content)
    assert saved.position.epoch > 0 and saved.position.step > 0
    with pytest.raises(UserError, match=rf"^some.pt: expected the state of .*{words}") as refusal:
        resumed(saved.model_copy(update=change(saved)))
    assert "\n" not in str(refusal.value)


def test_parts_of_another_moment_of_an_epoch_are_refused_at_its_end(content, whole):
    saved, end = Checkpoint.model_validate(content), checkpoint.load(whole / "last.pt")
    resumed(end)
    for update, words in (
        ({"summary": None}, "summary is None: expected one after epoch 4"),
        ({"ranks": saved.ranks}, "ranks is a list of 1: expected 0 after epoch 4"),
    ):
        with pytest.raises(UserError, match=f"expected the state of a whole run: {words}"):
            resumed(end.model_copy(update=update))


def test_a_run_without_averages_or_a_scaler_resumes_with_new_ones_and_one_that_never_stepped_without_momenta(content):
    saved = Checkpoint.model_validate(content)
    plain = copy.deepcopy(saved.config)
    plain["train"]["ema_decay"] = None
    buffers = [rank | {"buffers": rank["buffers"][:1]} for rank in saved.ranks]
    without = saved.model_copy(update={"ema": None, "config": plain, "ranks": buffers})
    learner = learner_of(validate(precise(saved, "float16"), "x"), len(saved.classes))
    learner.load_state_dict(without, ONE, Path("some.pt"))
    for name, value in learner.ema.module.state_dict().items():
        assert torch.equal(value, learner.model.state_dict()[name]) and torch.equal(value, saved.model[name]), name
    assert learner.scaler.is_enabled()
    scaled = {"config": precise(saved, "float16"), "scaler": learner.scaler.state_dict()}
    resumed(saved.model_copy(update=scaled))
    begun = {"ranks": [], "best": None, "summary": None, "evaluated": None, "position": Position()}
    resumed(saved.model_copy(update=begun | {"optimizer": saved.optimizer | {"state": {}}}))


@pytest.mark.parametrize("kind", ["int8", "float64", "shape", "sparse", "nan", "inf"])
def test_weights_of_another_kind_are_refused_by_name(content, kind):
    saved = Checkpoint.model_validate(content)
    name = next(name for name in saved.model if name.endswith("conv1.0.weight"))
    weight = saved.model[name].clone()
    changes = {
        "int8": weight.to(torch.int8),
        "float64": weight.double(),
        "shape": weight[:1],
        "sparse": weight.to_sparse(),
    }
    for key, value in (("nan", torch.nan), ("inf", torch.inf)):
        changes[key] = weight.clone()
        changes[key][1, 2, 0, 1] = value
    with pytest.raises((UserError, RunError), match=r"some.pt.*expected") as refusal:
        resumed(altered(saved, "model", {**saved.model, name: changes[kind]}))
    assert name in str(refusal.value) or kind == "sparse"
    assert isinstance(refusal.value, RunError) == (kind in ("nan", "inf"))


@pytest.mark.parametrize("seed", range(12))
def test_an_altered_checkpoint_without_its_sum_is_refused_or_holds_the_same(whole, tmp_path, seed, capsys):
    content, draw = bytearray((whole / "last.pt").read_bytes()), random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        part = draw.choice([info for info in archive.infolist() if info.file_size > 64])
    start = content.index(part.filename.encode()) + len(part.filename)
    for _ in range(1 + seed % 3):
        content[draw.randrange(start, start + part.file_size)] ^= 1 << draw.randrange(8)
    path = tmp_path / "altered.pt"
    path.write_bytes(content)
    try:
        found = checkpoint.load(path)
    except UserError as error:
        assert "\n" not in str(error) and "altered.pt" in str(error)
        return
    same = checkpoint.load(whole / "last.pt")
    assert found.content().keys() == same.content().keys()
    assert all(torch.equal(found.model[name], value) for name, value in same.model.items())
    assert found.config == same.config and found.position == same.position


def test_a_checkpoint_without_its_sum_is_used_with_a_warning(whole, tmp_path, capsys):
    path = tmp_path / "last.pt"
    path.write_bytes((whole / "last.pt").read_bytes())
    found = checkpoint.load(path)
    assert (
        "warning: " in (said := capsys.readouterr().err)
        and "last.pt.sha256 is missing" in said
        and said.count("\n") == 1
    )
    (tmp_path / "last.pt.sha256").write_bytes((whole / "last.pt.sha256").read_bytes())
    assert checkpoint.load(path).digest == found.digest and capsys.readouterr().err == ""


def test_names_of_later_epochs_than_the_one_resumed_from_go_and_those_of_the_run_stay(whole, tmp_path, capsys):
    run, names = tmp_path / "run", {"last.pt", "best.pt", "summary.json"}
    shutil.copytree(whole, run)
    folder, saved = RunFolder(run, writes=True), checkpoint.load(run / "last.pt")
    folder.take(run / "last.pt", saved, [], run)
    folder.settle(saved, saved.position.epoch)
    assert names <= {path.name for path in run.iterdir()} and capsys.readouterr().err == ""
    at = Position(epoch=saved.position.epoch - 1)
    before = {"position": at, "evaluated": at, "summary": None, "best": {"score": 0.5, "epoch": 1}}
    earlier = saved.model_copy(update=before)
    folder.take(run / "last.pt", earlier, [], run)
    folder.settle(earlier, saved.position.epoch)
    assert not names & {path.name for path in run.iterdir()} and "best.pt" in capsys.readouterr().err
    folder._lock.close()


def test_names_that_already_are_one_file_are_made_again_without_a_trace_and_survive_a_kill_in_between(whole, tmp_path):
    step = shutil.copy(checkpoint.step_paths(whole)[0], tmp_path / "step.pt")
    names = [tmp_path / name for name in ("last.pt", "best.pt")]
    for _ in range(2):
        for name in names:
            checkpoint.link(step, name)
    files = {"step.pt", "last.pt", "best.pt", "last.pt.sha256", "best.pt.sha256"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert all(name.samefile(step) for name in names)
    saved = checkpoint.load(names[0])
    names[1].with_name("next.pt.partial").hardlink_to(step)  # as a kill leaves it
    checkpoint.save(altered(saved, "best", None), tmp_path / "next.pt")
    assert checkpoint.load(names[0]).digest == saved.digest != checkpoint.load(tmp_path / "next.pt").digest


def test_what_killed_writers_left_of_checkpoints_goes_at_the_next_start(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path for path in run.rglob("*") if "tfevents" not in path.name}
    for leftover in ("last.pt.partial", "best.pt.partial.sha256", "checkpoints/step_00009_00000000.pt.partial"):
        (run / leftover).write_bytes(b"half")
    folder, saved = RunFolder(run, writes=True), checkpoint.load(run / "last.pt")
    config, course = validate(saved.config, "x"), Course(4, saved.position.epoch, None, False)
    folder.start(config, course, course.steps, course.steps, {}, run)
    folder.close()
    assert {path for path in run.rglob("*") if "tfevents" not in path.name} == before


@pytest.mark.parametrize("key", ["notes", "summary", "circumstances", "config"])
def test_tensors_among_plain_values_are_refused_by_name(content, tmp_path, key):
    changed = {**content, "model": {}, "ema": None, key: {"x": torch.zeros(1)}}
    if key == "notes":
        rank = content["ranks"][0]
        changed = {**content, "ranks": [{**rank, "losses": {**rank["losses"], "notes": [{"epoch": torch.zeros(1)}]}}]}
    torch.save(changed, tmp_path / "odd.pt")
    with pytest.raises(
        UserError, match=r"odd.pt: expected a checkpoint of this package.*(ranks|summary|circumstances|config)"
    ):
        checkpoint.load(tmp_path / "odd.pt")
    assert json.dumps(content["circumstances"])


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_runs_file_is_refused_before_anything_runs(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: a folder: expected a file"):
        RunFolder(tmp_path, writes=True)
    RunFolder(tmp_path, writes=False).close()


def test_a_checkpoint_of_another_version_is_refused_by_its_format(content, tmp_path):
    for form, found in ((None, "format 1"), (99, "format 99")):
        path = tmp_path / "other.pt"
        torch.save({**content, "format": form} if form else {k: v for k, v in content.items() if k != "format"}, path)
        with pytest.raises(UserError, match=f"{found}, of another version of this package: expected 5"):
            checkpoint.load(path)


def foreign(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Contents of other programs' files, and the words by which they are known."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer, plain = torch.optim.SGD(network.parameters()), network.state_dict()
    CheckpointSaver(network, optimizer, checkpoint_dir=str(folder)).save_checkpoint(1)
    lightning = {"epoch": 1, "pytorch-lightning_version": "2.4.0", "optimizer_states": [optimizer.state_dict()]}
    return {
        "plain": (plain, "a plain state_dict of 7 tensors: expected a checkpoint that train.py wrote"),
        "ddp": (nn.DataParallel(network).state_dict(), "7 tensors, its weights' names after the wrapper's 'module.'"),
        "compiled": (torch.compile(network).state_dict(), "the wrapper's '_orig_mod.': expected"),
        "timm": (
            torch.load(folder / "last.pth.tar", weights_only=True),
            "program's checkpoint, of 'epoch', 'arch', 'optimizer'",
        ),
        "lightning": (
            lightning | {"state_dict": {f"model.{name}": value for name, value in plain.items()}},
            "another program's checkpoint, of 'epoch', 'pytorch-lightning_version', 'optimizer_states', 'state_dict', "
            "its weights' names after the wrapper's 'model.'",
        ),
        "options": ({"args": argparse.Namespace(lr=0.1)}, "an object of argparse.Namespace, as files of other"),
        "pickled": ({"net": network}, "an object of torch.nn.modules.container.Sequential"),
        "empty": ({}, "another program's checkpoint, of nothing"),
    }


def test_files_of_other_programs_are_known_for_what_they_are(tmp_path):
    for name, (content, words) in foreign(tmp_path).items():
        torch.save(content, path := tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=re.escape(words)) as refusal:
            checkpoint.load(path)
        assert "another version" not in str(refusal.value) and str(path) in str(refusal.value)


def test_a_folder_in_the_place_of_a_checkpoint_is_none(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    paths = checkpoint.step_paths(run)
    checkpoint.step_path(run, Position(epoch=9)).mkdir()
    assert checkpoint.step_paths(run) == paths
