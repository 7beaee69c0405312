"""Damaged data, non-finite numbers, ranks that drift or stall: reported in one line, or skipped on request."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kill_loop
import psutil
import pytest
import torch
from commands import ROOT, command, succeed
from conftest import CLASSES
from kill_loop import CASES, Place, finish, start_ranks, wait_for_new_step
from torch import Tensor, nn

from en.build import build_network, build_to_device, open_loaders
from en.config.reading import load_config
from en.config.schema import Config
from en.data import ImageLoader
from en.data.ffcv.file import BetonFile
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.errors import RunError
from en.norm.built import layers_as_built
from en.runs import checkpoint
from en.runs.contents import Checkpoint
from en.runs.position import Position
from en.runs.resume import describe_data
from en.training.epoch import refuse_bad_step, train_epoch
from en.training.learner import Learner, build_learner
from en.training.record import EpochRecord

ONE = Ranks(0, 1, 0, 1)
CPU = torch.device("cpu")
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}} # float16 is slow on a CPU
norm: {name: en}
data: {root: unset, resolution: 32, workers: 2}
train: {epochs: 1, batch_size: 24}
optim: {lr: 0.01}
device: cpu
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def damage(path: Path, sample: int) -> None:
    """Overwrites the middle of a sample's JPEG stream."""
    file = BetonFile(path)
    at, size = int(file._offsets[sample]), int(file._sizes[sample])
    with path.open("r+b") as target:
        target.seek(at + 20)
        target.write(bytes(size - 40))


@pytest.fixture(params=["ffcv", "folder"])
def damaged(request, folders: Path, betons: Path, tmp_path: Path) -> tuple[list[str], str]:
    """Overrides for a data set with one damaged training sample, and that sample's name."""
    root = tmp_path / "damaged"
    if request.param == "ffcv":
        shutil.copytree(betons, root)
        damage(root / "train.beton", 5)
        return [f"data.root={root}"], "sample 5 is damaged"
    shutil.copytree(folders, root)
    path = sorted((root / "train").rglob("*.jpg"))[5]
    path.write_bytes(path.read_bytes()[:300])
    return [f"data.root={root}", "data.loader=folder"], path.name


def test_a_damaged_sample_ends_training_with_its_name_or_is_skipped_and_logged(damaged, recipe, tmp_path):
    overrides, name = damaged
    stopped = command("train.py", recipe, *overrides, f"run_dir={tmp_path / 'stopped'}")
    assert (
        stopped.returncode == 1
        and name in stopped.stderr.strip().splitlines()[-1]
        and "Traceback" not in stopped.stderr
    )
    run = tmp_path / "run"
    skipped = succeed("train.py", recipe, *overrides, "data.on_error=skip", f"run_dir={run}", ranks=2)
    assert name in skipped.stderr
    (event,) = [json.loads(text) for text in (run / "events.jsonl").read_text().splitlines()]
    assert event["epoch"] == 1 and 1 <= event["step"] <= 4 and name in event["damaged"]
    assert json.loads((run / "log.jsonl").read_text())["damaged"] == 1


def test_the_stand_in_is_the_next_intact_sample_with_its_label_for_any_number_of_workers(damaged, recipe):
    overrides, _ = damaged
    seen = []
    for workers in (1, 2):
        config = load_config(str(recipe), [*overrides, "data.on_error=skip", f"data.workers={workers}"])
        loader = open_loaders(config, ONE, ["train"])["train"]
        batches = list(loader.train_epoch(0, (32, 32)))
        samples = torch.cat([batch.samples for batch in batches])
        assert sum(len(batch.damaged) for batch in batches) == 1
        assert 5 not in samples and (samples == 6).sum() == 2
        (first, second) = (
            torch.cat([batch.images for batch in batches])[i] for i in (samples == 6).nonzero().flatten().tolist()
        )
        assert torch.equal(first, second)
        assert len(set(torch.cat([batch.targets for batch in batches])[samples == 6].tolist())) == 1
        seen.append(torch.cat([batch.images for batch in batches]))
        loader.close()
    assert torch.equal(*seen)


def test_a_damaged_sample_is_always_an_error_in_evaluation(folders, betons, recipe, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(betons, root)
    damage(root / "val.beton", 3)
    done = command("train.py", recipe, f"data.root={root}", "data.on_error=skip", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1 and "val.beton: sample 3 is damaged" in done.stderr.splitlines()[-1]


def test_labels_beyond_the_classes_are_refused_at_the_start(betons, recipe, tmp_path):
    root = tmp_path / "fewer"
    shutil.copytree(betons, root)
    names = json.loads((root / "classes.json").read_text())
    (root / "classes.json").write_text(json.dumps(names[:-1]))
    done = command("train.py", recipe, f"data.root={root}", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and f"label {CLASSES - 1}: expected 0 to {CLASSES - 2}" in done.stderr


class Spoilt(nn.Module):
    """A network whose output or gradient is not finite in certain forward passes."""

    def __init__(self, network: nn.Module, at: set[int], what: str) -> None:
        super().__init__()
        self.network, self.at, self.what, self.passes = network, at, what, 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        self.passes += 1
        if self.passes - 1 in self.at:
            if self.what == "loss":
                return y * float("nan")
            y.register_hook(lambda grad: grad * float("inf"))
        return y


class Trainer(NamedTuple):
    config: Config
    learner: Learner
    loader: ImageLoader
    to_device: ToDevice
    record: EpochRecord

    def steps(self) -> Iterator[Position]:
        """The steps of the first epoch, looked at once they are all done."""
        yield from train_epoch(*self, Position(), ONE)
        refuse_bad_step(self.config, self.record, self.loader, 0, ONE)


def trainer_of(recipe: Path, betons: Path, at: set[int], what: str, *overrides: str) -> Trainer:
    config = load_config(str(recipe), [f"data.root={betons}", *overrides])
    loader = open_loaders(config, ONE, ["train"])["train"]
    torch.manual_seed(0)
    model = Spoilt(build_network(config, CLASSES), at, what)
    learner = build_learner(config, model, CPU, ONE)
    to_device = build_to_device(config, CPU)
    return Trainer(config, learner, loader, to_device, EpochRecord(CPU))


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_is_noted_and_training_continues(recipe, betons, what, precision):
    trainer = trainer_of(
        recipe, betons, {1}, what, "train.on_nonfinite=skip", "train.ema_decay=0.5", f"train.precision={precision}"
    )
    network = trainer.learner.model
    states = [{key: value.clone() for key, value in network.state_dict().items()} for _ in trainer.steps()]
    scalers_own = precision == "float16" and what == "gradient"
    notes = [
        {key for key in note if key not in ("epoch", "step")} for note in trainer.record.notes if note["step"] == 2
    ]
    assert notes == [{"scaler_skipped"} if scalers_own else {"left_out"}]
    changed = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    assert all("running" in key or "tracked" in key for key in changed) if scalers_own else changed == []
    assert any(not torch.equal(states[1][key], states[2][key]) for key in states[1] if "weight" in key)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    trainer.loader.close()


def test_a_run_whose_first_step_was_left_out_resumes_without_momenta_bit_for_bit(recipe, betons, tmp_path):
    options = ("train.on_nonfinite=skip", "train.ema_decay=0.5")
    whole = trainer_of(recipe, betons, {0}, "loss", *options)
    steps = whole.steps()
    at, path = next(steps), tmp_path / "first.pt"
    own = {"losses": whole.record.state_dict(), "buffers": whole.learner.buffers()}
    state = Checkpoint(
        **whole.learner.state_dict(),
        position=at,
        ranks=[own],
        best=None,
        summary=None,
        config=whole.config.model_dump(),
        norms=layers_as_built(whole.learner.model),
        classes=whole.loader.classes,
        data=describe_data("ffcv", whole.loader, whole.loader),
        circumstances={"ranks": 1},
    )
    checkpoint.save(state, path)
    saved, again = checkpoint.load(path), trainer_of(recipe, betons, set(), "loss", *options)
    assert {one["momentum_buffer"] for one in saved.optimizer["state"].values()} == {None}
    again.learner.load_state_dict(saved, ONE, path)
    again.record.load_state_dict([rank["losses"] for rank in saved.ranks], ONE)
    assert len(list(steps)) == len(list(train_epoch(*again, at, ONE))) == 3
    for name, value in whole.learner.model.state_dict().items():
        assert torch.equal(value, again.learner.model.state_dict()[name]), name
    for trainer in (whole, again):
        trainer.loader.close()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_is_reported_with_its_step_even_in_the_last_one(recipe, betons, what):
    trainer = trainer_of(recipe, betons, {3}, what)
    with pytest.raises(
        RunError, match=f"the {what} is not finite at step 4/4 of epoch 1 on rank 0, learning rate .*, batch of 24"
    ):
        list(trainer.steps())
    trainer.loader.close()


def test_too_many_non_finite_steps_in_a_row_end_the_run(recipe, betons):
    trainer = trainer_of(recipe, betons, {1, 2, 3}, "loss", "train.on_nonfinite=skip", "train.nonfinite_limit=2")
    with pytest.raises(RunError, match=r"not finite 2 times in a row .*nonfinite_limit.*step 3/4"):
        list(trainer.steps())
    trainer.loader.close()


def test_a_rank_whose_weights_or_buffers_drift_by_one_bit_is_named():
    done = succeed("tests/fault_worker.py", ranks=3)
    for part in ("fc.weight", "bn1.running_mean"):  # reported by each rank; their lines may run together
        for rank in range(3):
            assert f"{part}, rank {rank}: " in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("the weights or buffers of rank 1 differ from rank 0's") == 2 * 3, done.stdout


def test_a_rank_that_stalls_ends_the_others_with_its_name_within_the_time_limit(folders, betons, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(kill_loop.RECIPE)
    place, run = Place(path, {"ffcv": betons, "folder": folders}), tmp_path / "run"
    process = start_ranks(place, CASES[2], run, "distributed.timeout_s=5", "train.epochs=500")
    assert wait_for_new_step(process, run, set())
    *others, stalled = (psutil.Process(rank.pid) for rank in process.processes)
    stalled.suspend()
    psutil.wait_procs(others, timeout=100)
    stalled.kill()  # as torchrun does, but 30 s later
    code, errors = finish(process, limit_s=150)
    reports = [text for text in errors.splitlines() if text.startswith("error: ")]
    assert code != 0 and len(reports) == 2 and all("rank 2 left the run" in text for text in reports), errors


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("raised", "code"), [("UserError", 2), ("RunError", 1), ("Stopped", 75), ("KeyboardInterrupt", 130)]
)
def test_an_error_is_one_write_so_that_lines_of_several_ranks_never_run_together(unbuffered, raised, code):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps one write from the next
    script = f"from en.errors import *\ndef fail(): raise {raised}('cause')\nexit_on_error(fail)"
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    with ours:
        with theirs:
            done = subprocess.run([sys.executable, "-c", script], env=env, stderr=theirs, timeout=60, check=False)
        writes = list(iter(lambda: ours.recv(9999), b""))
    line = {"Stopped": "cause", "KeyboardInterrupt": "interrupted"}.get(raised, "error: cause")
    assert (done.returncode, writes) == (code, [f"{line}\n".encode()])
    closed = ["bash", "-c", '"$0" -c "$1" 2>&-', sys.executable, script]
    assert subprocess.run(closed, env=env, timeout=60, check=False).returncode == code
