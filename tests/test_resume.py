"""Runs that are killed, stopped, moved to another number of ranks or started by several nodes end as untouched ones."""

import json
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import kill_loop
import pytest
import torch
from commands import command, refused
from kill_loop import (
    CASES,
    Case,
    differences,
    finish,
    line,
    rows,
    start,
    start_ranks,
    train,
    wait_for_new_step,
)

from en.config.reading import load_config
from en.errors import RunError
from en.runs import checkpoint
from en.runs.position import Position
from en.training.run import TrainingRun
from en.training.signals import StopRequest

KILLS = {0: 5, 2: 3, 3: 3}  # by ranks: 16 in all


@pytest.mark.slow(reason="3 to 5 kills, a start of all ranks for each")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_the_untouched_one(place, untouched, tmp_path, case):
    kills = kill_loop.run_killed(place, case, tmp_path / "run", random.Random(str(case)), KILLS[case.ranks])
    assert kills == KILLS[case.ranks]
    assert differences(untouched(case), tmp_path / "run") == []
    assert len(json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]) == kills + 1


@pytest.mark.slow(reason="torchrun starts two nodes cold")
def test_two_nodes_train_what_one_node_trains(place, untouched, tmp_path):
    case, run = CASES[3], tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    one = Case(case.loader, 1, case.options)
    rendezvous = ("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=test", f"--rdzv-endpoint=localhost:{port}")
    nodes = [start(line(place, one, run, "resume=auto", launcher=rendezvous)) for _ in range(2)]
    for code, errors in [finish(node) for node in nodes]:
        assert code == 0, errors
    assert differences(untouched(case), run) == []


def test_a_run_goes_on_with_another_number_of_ranks_from_the_same_sample(place, tmp_path):
    """gn has no batch statistics and nothing is drawn at random, so that ranks change nothing but rounding."""
    plain = [
        "norm.name=gn",
        "model={name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}",
        "task.mixup=0",
        "task.cutmix=0",
        "model.dropout=0",
        "train.ema_decay=null",
    ]
    plain += ["train.epochs=2", "checkpoint.every_steps=2", "checkpoint.keep=100", "optim.lr=0.01"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    kill_loop.run_untouched(place, Case("ffcv", 0, plain), whole)
    kill_loop.run_untouched(place, Case("ffcv", 2, plain), run)
    between = checkpoint.step_path(run, Position(step=2))
    assert len(checkpoint.load(between).ranks) == 2
    environment = {"RANK": "0", "WORLD_SIZE": "5"}
    assert "batch_size=24" in refused(train(place, Case("ffcv", 0, plain), run, "resume=auto", **environment))
    code, errors = finish(start_ranks(place, Case("ffcv", 3, plain), run, f"resume={between}", "--drop-later"))
    assert code == 0, errors
    for ours, theirs in zip(rows(whole), rows(run), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=5e-3) and theirs["lr"] == ours["lr"]


class EndsInEvaluation(TrainingRun):
    """A run that is cut off when its first evaluation begins."""

    def evaluate(self):
        self.folder.close()
        raise RunError("the power went")


def test_a_run_that_ends_in_evaluation_resumes_there_and_trains_no_step_again(place, untouched, tmp_path):
    case, run, threads = CASES[0], tmp_path / "run", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(RunError, match="the power went"):
            config = load_config(str(place.recipe), line(place, case, run)[3:])
            EndsInEvaluation(config, str(place.recipe), StopRequest()).train()
    finally:
        torch.set_num_threads(threads)
    before = checkpoint.step_paths(run)[0]
    done = train(place, case, run, "resume=auto")
    assert done.returncode == 0, done.stderr
    resumed = json.loads((run / "provenance.json").read_text())["starts"][1]
    steps = checkpoint.load(untouched(case) / "last.pt").data["train"]["samples"] // 24
    assert resumed["resumed_at"] == {"epoch": 0, "step": steps} and not before.exists()
    assert differences(untouched(case), run) == []


def test_two_runs_cannot_write_into_one_folder(place, tmp_path):
    run = tmp_path / "run"
    process = start(line(place, CASES[0], run, "train.epochs=500"))
    assert wait_for_new_step(process, run, set())
    second = train(place, CASES[0], run, "train.epochs=500", "resume=auto")
    assert process.poll() is None, "the first ended too early for this test"
    kill_loop.kill(process)
    assert "another run is writing into it" in refused(second)
    assert "holds a run already" in refused(train(place, CASES[0], run))


def test_damaged_checkpoints_are_left_for_the_one_before_and_explicit_ones_refused(place, untouched, tmp_path):
    case, run = CASES[0], tmp_path / "run"
    process = start(line(place, case, run, "checkpoint.keep=4"))
    while len(kill_loop.steps(run)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    kill_loop.kill(process)
    newest, second = sorted((run / "checkpoints").glob("step_*.pt"), reverse=True)[:2]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    second.write_bytes(content)
    for path in (newest, second):
        assert path.name in refused(train(place, case, run, f"resume={path}"))
    code, errors = finish(start(line(place, case, run, "resume=auto")))
    assert code == 0, errors
    assert errors.count("truncated or changed") == 2 and errors.count("; passed over") == 2
    assert differences(untouched(case), run) == []
    for path in [*(run / "checkpoints").glob("*.pt"), run / "last.pt"]:
        path.write_bytes(b"nothing")
    broken = train(place, case, run, "resume=auto")
    assert broken.returncode == 2 and "none of its 3 checkpoints can be used" in broken.stderr.splitlines()[-1]


def test_what_a_kill_between_a_checkpoint_and_its_names_left_undone_is_done_on_resume(place, untouched, tmp_path):
    whole, run = untouched(CASES[0]), tmp_path / "run"
    shutil.copytree(whole, run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "last.pt").write_bytes(b"an older epoch's")
    (run / "summary.json").unlink()
    done = train(place, CASES[0], run, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert differences(whole, run) == [] and json.loads((run / "summary.json").read_text()) == summary
    names = {path.name.removesuffix(".sha256"): path.read_text().split() for path in run.glob("*.pt.sha256")}
    assert {name: name for name in names} == {name: words[1] for name, words in names.items()}
    checked = subprocess.run(
        ["sha256sum", "-c", "last.pt.sha256", "best.pt.sha256"], cwd=run, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_a_missing_checkpoint_is_an_error_and_auto_in_an_empty_folder_reports_a_new_run(place, tmp_path):
    assert "nowhere" in refused(train(place, CASES[0], tmp_path / "run", f"resume={tmp_path / 'nowhere'}"))
    (tmp_path / "other").mkdir()
    elsewhere = train(place, CASES[0], tmp_path / "run", f"resume={tmp_path / 'other'}")
    assert f"--resume {tmp_path / 'other'}: expected a run folder with a checkpoint, found none" in refused(elsewhere)
    assert "run_dir=null" in refused(command("train.py", place.recipe, "--resume", "auto"))
    begun = train(place, CASES[0], tmp_path / "run", "resume=auto", "train.epochs=1")
    assert begun.returncode == 0 and "has no checkpoint yet: a new run begins" in begun.stderr


@pytest.fixture
def small_disk(tmp_path: Path):
    """A folder on a file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_last_whole_checkpoint(place, small_disk):
    run = small_disk / "run"
    done = train(place, CASES[0], run, "checkpoint.keep=100")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "No space left on device" in last and "this checkpoint was not written; those before it are whole" in last
    assert not list(run.rglob("*.partial"))
    for path in sorted((run / "checkpoints").glob("step_*.pt"))[1:]:
        path.unlink()  # room to resume
    again = train(place, CASES[0], run, "resume=auto", "checkpoint.keep=1", "train.epochs=1")
    assert again.returncode == 0, again.stderr
