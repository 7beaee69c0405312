"""Suites: what a file names, what of it is run, and what happens when runs fail or are stopped."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import ROOT, Together, command, refused, succeed
from kill_loop import start
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from en.config.reading import dump
from en.errors import UserError
from en.norm import NORMALIZERS, Normalizer
from en.runs.board import Board
from en.runs.by_class import ByClass, Findings
from en.runs.row import Row
from en.runs.scores import Scores
from en.runs.summary import Summary
from en.suites.experiment import FILE, varied, write_experiment
from en.suites.failures import failure_path, forget_failure, keep_failure, was_stopped
from en.suites.plan import Planned, plan, variants_of
from en.suites.state import Progress, cost_of, progress_of, seconds_left
from en.suites.table import show_scores

SHIPPED = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
BASE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
data: {root: ROOT, resolution: 32, workers: 1}
train: {epochs: 2, batch_size: 24}
optim: {lr: 0.01}
device: cpu
"""
SUITE = """
base: base.yaml
set: {norm.name: bn}
variants:
  broken: {optim.lr: 1e30}
  plain: {}
  smooth: {task.label_smoothing: 0.1}
"""


@pytest.fixture
def suite(tmp_path, betons):
    (tmp_path / "base.yaml").write_text(BASE.replace("ROOT", str(betons)))
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_suite_is_planned_and_headed_by_its_command(path, tmp_path):
    runs = plan(path, tmp_path, [])
    assert f"scripts/ablate.py {path.relative_to(ROOT)}" in path.read_text()
    assert len({run.folder for run in runs}) == len(runs) and len({run.config.seed for run in runs}) > 1
    assert len({run.config.model_copy(update={"seed": 0, "run_dir": None}).model_dump_json() for run in runs}) == (
        len({run.variant for run in runs})
    )
    small = plan(path, tmp_path, ["train.epochs=1"], ROOT / "configs" / "quickstart" / "fashion_mnist.yaml")
    assert [run.name for run in small] == [run.name for run in runs]
    assert {run.config.model.name for run in small} == {"timm/resnet10t"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_network_of_a_shipped_suite_can_be_built(path, tmp_path):
    configs = [run.config for run in variants_of(plan(path, tmp_path, [])).values()]
    for config in {(str(config.model), str(config.norm)): config for config in configs}.values():
        norm = config.norm
        with torch.device("meta"):
            network = config.task.network(10, norm=norm.name, norm_options=norm.options, **config.model.model_dump())
        kinds = {type(layer) for layer in network.modules() if isinstance(layer, Normalizer)}
        assert kinds == {NORMALIZERS[norm.name]}, norm


def test_a_grid_and_variants_give_every_combination_seed_by_seed(tmp_path, suite):
    suite.write_text(
        "base: base.yaml\nseeds: [3, 5]\nvariants: {a: {norm.name: bn}, b: {norm.name: en}}\n"
        "grid: {norm.eps: [1e-3, 1e-5], model.dropout: [0.0, 0.5]}\n"
    )
    runs = plan(suite, tmp_path / "out", ["optim.lr=0.5"])
    assert [run.name for run in runs[:3]] == [
        "a-eps0.001-dropout0.0-s3",
        "a-eps0.001-dropout0.5-s3",
        "a-eps1e_05-dropout0.0-s3",
    ]
    assert len(runs) == 16 and [run.config.seed for run in runs] == [3] * 8 + [5] * 8
    last = runs[-1].config
    assert (last.norm.name, last.norm.options["eps"], last.model.dropout, last.optim.lr) == ("en", 1e-5, 0.5, 0.5)
    assert last.run_dir == str(tmp_path / "out" / "b-eps1e_05-dropout0.5-s5")
    assert cost_of(runs[-1], 4).params > cost_of(runs[0], 4).params


MISTAKES = {
    "bsae: base.yaml": "unknown key 'bsae' (did you mean 'base'?)",
    "seeds: [0]": "base: missing",
    "base: missing.yaml": "missing.yaml: No such file",
    "base: base.yaml\nseeds: []": "seeds=[]: expected at least 1 items",
    "base: base.yaml\nseeds: [1, 1]": "seeds: [1, 1]: expected different values",
    "base: base.yaml\nseeds: [x]": "seeds.0='x': expected an integer",
    "base: base.yaml\ngrid: {norm.name: [bn, bn]}": "norm.name=['bn', 'bn']: expected different values",
    "base: base.yaml\ngrid: {norm.name: bn}": "grid.norm.name='bn': expected a list",
    "base: base.yaml\ngrid: {norm.name: [bn, enn]}": "enn: ",
    "base: base.yaml\ngrid: {seed: [1, 2]}": "grid.seed=[1, 2]: expected the suite's key seeds, as in seeds: [0, 1, 2]",
    "base: base.yaml\nset: {seed: 3}": "set.seed=3: expected the suite's key seeds",
    "base: base.yaml\nset: {'seed=3': 4}": "seed=3=4: expected the suite's key seeds",
    "base: base.yaml\nvariants: {a: {seed: 3}}": "variants.a.seed=3: expected the suite's key seeds",
    "base: base.yaml\nvariants: {a: {run_dir: x}}": "variants.a.run_dir='x': expected --out DIR",
    "base: base.yaml\ngrid: {run_dir: [x]}": "grid.run_dir=['x']: expected --out DIR",
    "base: base.yaml\nset: {resume: runs/x}": "set.resume='runs/x': expected none: the same command resumes",
    "base: base.yaml\nvariants: {a: {norm.name: bn}}\ngrid: {norm.name: [gn, sn]}": (
        "variants.a.norm.name: expected a key that the grid does not vary"
    ),
    "base: base.yaml\nset: {norm.name: bn}\nvariants: {a: {optim: {lr: 1.0}}}\ngrid: {optim.lr: [0.1]}": "a.optim.lr: ",
    "base: base.yaml\nset: {norm.name: bn}\ngrid: {optim.lrr: [1]}": "unknown key 'optim.lrr'",
    "base: base.yaml\nset: {norm.name: bn}\nvariants: {a/b: {}}": "variants.a/b",
    "base: base.yaml\nset: {norm.name: bn}\nvariants: {a: 3}": "variants.a=3: expected a section",
    "base: base.yaml\nset: {norm.name: bn}\ngrid: {optim.lr: [1.0, '1.0']}": "expected",
    "base: base.yaml\nset: {norm.name: bn}\ngrid: {model.name: [resnet18], norm.hidden: [3]}": "hidden",
}


@pytest.mark.parametrize("content", MISTAKES)
def test_a_suite_that_is_wrong_is_refused_in_one_line_that_names_the_file_and_the_key(suite, tmp_path, content):
    suite.write_text(content)
    with pytest.raises(UserError) as refusal:
        plan(suite, tmp_path, [])
    assert MISTAKES[content] in str(refusal.value) and str(refusal.value).isprintable() and "yaml" in str(refusal.value)


IGNORED = {
    "seed=3": "argument 'seed=3': expected the suite's key seeds, as in seeds: [0, 1, 2]",
    "run_dir=x": "argument 'run_dir=x': expected --out DIR, the folder of all runs",
    "resume=auto": "argument 'resume=auto': expected none: the same command resumes",
    "norm.name=sn": "argument 'norm.name=sn': expected a key that the grid of SUITE does not vary: norm.name",
    "norm={name: sn}": "argument 'norm={name: sn}': expected a key that the grid of SUITE does not vary: norm.name",
}


@pytest.mark.parametrize("override", IGNORED)
def test_an_override_that_would_be_lost_or_belie_the_names_of_runs_is_refused(suite, tmp_path, override):
    suite.write_text("base: base.yaml\ngrid: {norm.name: [bn, gn]}")
    told = refused(command("scripts/ablate.py", suite, "--out", tmp_path / "out", "--dry-run", override))
    assert IGNORED[override].replace("SUITE", str(suite)) in told
    assert len(plan(suite, tmp_path / "out", ["norm.eps=0.1"])) == 2


def test_a_suite_without_seeds_has_that_of_its_base_and_what_a_base_says_of_its_own_run_is_warned_of(
    suite, tmp_path, capsys
):
    base = suite.parent / "base.yaml"
    below, own = base.rename(base.with_name("below.yaml")), "base: below.yaml\nseed: 7\n"
    base.write_text(own)
    assert {(run.config.seed, run.name[-3:]) for run in plan(suite, tmp_path / "out", [])} == {(7, "-s7")}
    suite.write_text(f"{SUITE}seeds: [1, 2]\n")
    assert {run.config.seed for run in plan(suite, tmp_path / "out", [])} == {1, 2}
    assert capsys.readouterr().err == ""
    base.write_text(f"{own}run_dir: runs/x\nresume: runs/y\n")
    runs = plan(suite, tmp_path / "out", [])
    assert {run.folder.parent for run in runs} == {tmp_path / "out"}
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {base}: run_dir='runs/x': not for a suite's runs, which are in {tmp_path / 'out'}",
        f"warning: {base}: resume='runs/y': not for a suite's runs: each resumes in its own folder",
    ]
    base.write_text("base: below.yaml\nresume: auto\n")
    assert len(plan(suite, tmp_path / "out", [])) == 6 and capsys.readouterr().err == ""
    suite.write_text(SUITE)
    for wrong in ("x", "-1", "[1, 2]"):
        below.write_text(f"{BASE}seed: {wrong}\n")
        with pytest.raises(UserError, match=r"seed=.*: expected"):
            plan(suite, tmp_path / "out", [])


def test_the_time_left_follows_from_the_epochs_done(suite, tmp_path):
    runs = plan(suite, tmp_path, ["train.epochs=10"])[:3]
    unknown = Progress(False, 0, ())
    assert seconds_left(runs, [unknown] * 3, 1) is None
    some = [Progress(True, 4, (3.0, 5.0)), unknown, Progress(True, 10, (2.0, 2.0))]
    assert seconds_left(runs, some, 1) == 6 * 4.0 + 10 * 3.0
    assert seconds_left(runs, some, 2) == (6 * 4.0 + 10 * 3.0) / 2


@pytest.mark.slow(reason="a suite starts its runs cold, four in all")
def test_a_suite_is_stopped_and_resumed_passes_a_run_that_fails_and_skips_what_is_finished(suite, tmp_path):
    out, options = tmp_path / "out", ["train.epochs=3", "checkpoint.every_steps=1"]
    arguments = [suite, "--out", out, *options]
    broken, plain, smooth = plan(suite, out, options)
    process = start([sys.executable, str(ROOT / "scripts" / "ablate.py"), *map(str, arguments)])
    assert isinstance(process, Together)
    while not checkpoints(plain.folder):
        assert process.poll() is None, process.said()
        time.sleep(0.02)
    (run,) = psutil.Process(process.pid).children()
    run.suspend()  # or it might finish before the suite hears of the signal
    process.send_signal(signal.SIGINT)
    while "waiting for the checkpoints of 1 runs" not in process.said():
        assert process.poll() is None, process.said()
        time.sleep(0.02)
    run.resume()
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and "the same command resumes the suite" in errors, errors
    failure = "broken-s0: failed with exit code 1: error: the loss is not finite"
    assert "missing" in shown and failure in errors and not smooth.folder.exists()
    before = checkpoints(plain.folder)
    succeed("train.py", smooth.base, *smooth.overrides, "--resume", "auto")  # as the suite would start it
    log = (out / "broken-s0.log").read_bytes()
    again = command("scripts/ablate.py", *arguments, "--retry-failed")
    assert again.returncode == 1 and failure in again.stderr and "smooth-s0: started" not in again.stderr, again.stderr
    assert again.stderr.strip().splitlines()[-1].startswith("error: 1 of 3 runs failed: broken-s0")
    assert "interrupted" in again.stdout and "finished" in again.stdout
    assert (out / "broken-s0.log").read_bytes().count(b"== ") == 2 * log.count(b"== ") > 0
    starts = json.loads((plain.folder / "provenance.json").read_text())["starts"]
    assert len(starts) == 2 and before and starts[1]["resumed_at"]["step"] + starts[1]["resumed_at"]["epoch"] > 0
    assert [progress_of(each).epochs for each in (broken, plain, smooth)] == [0, 3, 3]
    assert re.search(r"^plain-s0: started, .*; its own progress: .*/plain-s0\.log$", again.stderr, re.MULTILINE)
    assert re.search(r"^plain-s0: finished, top-1 \d+\.\d\d %$", again.stderr, re.MULTILINE)
    assert "of 2 finished runs after their last epoch, 1 runs not finished" in again.stdout
    assert f"en-report {out} --out {out}-report" in again.stdout and (out / FILE).is_file()
    plan_again = command("scripts/ablate.py", *arguments, "--dry-run")
    assert plan_again.returncode == 0 and "3 runs, 2 finished, 1 failed; about 0 s" in plan_again.stdout
    table = " ".join(plan_again.stdout.split())
    assert re.search(r"0/3 failed \d{4}-\d\d-\d\d \d\d:\d\d with exit code 1: the loss is not finite at step", table)
    log = (out / "broken-s0.log").read_bytes()
    not_again = command("scripts/ablate.py", *arguments)
    assert not_again.returncode == 1 and "1 of 3 runs failed: broken-s0; --retry-failed tries" in not_again.stderr
    assert (out / "broken-s0.log").read_bytes() == log
    assert "holds a run with optim.lr=1e+30: expected 0.5" in refused(
        command("scripts/ablate.py", *arguments, "optim.lr=0.5")
    )
    written_out = command("scripts/ablate.py", *arguments, "norm.eps=1e-5", "--dry-run")  # the default, in words
    assert written_out.returncode == 0 and "3 runs, 2 finished" in written_out.stdout
    summary = plain.folder / "summary.json"
    summary.write_text(summary.read_text().replace('"eps": 1e-05', '"eps": 0.25'))  # another day's default
    of_today = command("scripts/ablate.py", *arguments, "norm.eps=1e-5")
    assert "holds a run with norm.eps=0.25: expected 1e-05" in refused(of_today)


def test_a_suite_refuses_a_folder_whose_run_began_with_other_weights_of_the_same_name(suite, tmp_path):
    weights = tmp_path / "body.pt"
    weights.write_bytes(b"weights")
    start = {"init": {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}}
    run = plan(suite, tmp_path / "out", [f"init={weights}"])[0]
    run.folder.mkdir(parents=True)
    (run.folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    assert progress_of(run).epochs == 0
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match=f"holds a run with init={weights} of the digest {start['init']['sha256']}"):
        progress_of(run)
    weights.unlink()
    assert progress_of(run).epochs == 0


def compared(out: Path) -> list[tuple[dict[str, object], dict[str, float], int]]:
    """Asks TensorBoard's HPARAMS for its table of a folder. Returns: keys, metrics and sessions of each of its rows."""
    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(out)).Reload()
    context = base_plugin.TBContext(
        logdir=str(out), data_provider=data_provider.MultiplexerDataProvider(runs, str(out))
    )
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100, aggregation_type=api_pb2.AGGREGATION_AVG, allowed_statuses=[api_pb2.STATUS_UNKNOWN]
    )
    asked = (RequestContext(), backend_context.Context(context), "", request)
    return [
        (
            {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()},
            {each.name.tag: each.value for each in group.metric_values},
            len(group.sessions),
        )
        for group in list_session_groups.Handler(*asked).run().session_groups
    ]


def test_tensorboard_compares_the_variants_of_a_suite_by_the_keys_in_which_they_differ(suite, tmp_path):
    suite.write_text("base: base.yaml\nseeds: [0, 1]\ngrid: {norm.name: [bn, gn], optim.lr: [0.1, 0.2]}\n")
    out = tmp_path / "out"
    runs = plan(suite, out, [])
    assert varied(runs) == ["norm.name", "optim.lr"]
    write_experiment(out, runs[:1])  # of a suite that has grown since
    write_experiment(out, runs)
    for run in runs:
        run.folder.mkdir()
        board = Board(run.folder, 1, 1, run.config, {})
        top1 = 50 + 100 * run.config.optim.lr + run.config.seed
        by_class = ByClass(epoch=1, task="classification", counted="images", classes=["a"], counts={})
        row = Row(epoch=1, train_loss=0.5, lr=0.1, scores=Scores({"top1": top1, "loss": 1.0}, {}))
        board.write(row, {}, Findings(by_class, {}), None)
        board.close()
    found = compared(out)
    assert len(found) == 4 and {sessions for *_, sessions in found} == {2}
    for keys, metrics, _ in found:
        assert keys["norm.name"] in ("bn", "gn") and "seed" not in keys and "data.root" not in keys
        assert metrics["val/top1"] == pytest.approx(50.5 + 100 * keys["optim.lr"])  # the mean over seeds
        assert metrics.keys() == {"val/top1", "val/loss", "train/loss"}
    assert [path.name for path in out.glob("events*")] == ["events.out.tfevents.0.suite"]


def test_a_suite_ends_with_the_scores_of_its_variants_and_what_compares_them(suite, tmp_path, capsys):
    suite.write_text("base: base.yaml\nseeds: [0, 1]\ngrid: {norm.name: [bn, gn]}\n")
    out = tmp_path / "a suite"
    runs = plan(suite, out, [])
    show_scores(runs, out)
    assert capsys.readouterr().out == ""
    for run, epochs, top1 in zip(runs, (2, 2, 2, 1), (60.0, 70.0, 61.0, 99.0), strict=True):
        write_summary(run, epochs, top1)
    show_scores(runs, out)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "variant seeds top-1 % sd lowest highest",
        "gn 1 70.00 - 70.00 70.00",
        "bn 2 60.50 0.71 60.00 61.00",
        "of 3 finished runs after their last epoch, 1 runs not finished",
        f"which differences are shown: en-report '{out}' --out '{out}-report'",
        f"curves: tensorboard --logdir '{out}'",
    ]


def write_summary(run: Planned, epochs: int, top1: float) -> None:
    config, run_in = run.config, {"world_size": 1, "hardware": "a machine", "images_per_second": 1.0}
    summary = Summary(
        model=config.model.name, norm=config.norm.name, norm_options={}, task=config.task.name, dataset="clothes",
        classes=4, images=20, seed=config.seed, epochs=2, epochs_done=epochs, resolution=32, eval_resolution=32,
        batch_size=24, scores={"top1": top1}, score="top1", best_score=99.0, best_epoch=1, params=1, gmacs=1.0,
        norm_gmacs=1.0, **run_in,
    )  # fmt: skip
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(summary.model_dump_json())


@pytest.fixture
def run(suite, tmp_path):
    """One planned run with a folder that it has begun."""
    (planned, *_) = plan(suite, tmp_path / "out", [])
    planned.folder.mkdir(parents=True)
    (planned.folder / "config.yaml").write_text(dump(planned.config))
    return planned


def test_a_failure_holds_for_the_same_configuration_until_the_run_is_started_again_or_removed(run, suite, tmp_path):
    keep_failure(run, 1, "error: no\nway")
    failure = progress_of(run).failure
    assert failure and (failure.exit_code, failure.reason) == (1, r"no\nway")
    (other, *_) = plan(suite, tmp_path / "out", ["data.root=elsewhere"])
    assert progress_of(other).failure is None and progress_of(other).begun
    assert seconds_left([run], [Progress(True, 1, (5.0,), failure)], 1) == 0
    (run.folder / "config.yaml").unlink()
    assert progress_of(run).failure is None
    keep_failure(run, 2, "x")
    assert progress_of(run).failure
    failure_path(run).write_text("{}")
    assert progress_of(run).failure is None
    keep_failure(run, 2, "x")
    forget_failure(run)
    assert progress_of(run).failure is None


def failing(tmp_path: Path, worker: str) -> tuple[int, str]:
    """The exit code and output of torchrun, of two ranks that run this."""
    (tmp_path / "worker.py").write_text(f"import os, signal, sys\nrank = os.environ['RANK']\n{worker}\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "worker.py")], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_run_that_was_killed_or_stopped_is_told_from_one_that_failed_also_through_torchrun(tmp_path):
    assert [was_stopped(code, "") for code in (-9, -15, 75, 130, 143, 1, 2)] == [True] * 5 + [False] * 2
    code, log = failing(tmp_path, "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\nsignal.pause()")
    assert code == 1 and was_stopped(code, log)
    code, log = failing(tmp_path, "sys.exit(1) if rank == '1' else signal.pause()")
    assert code == 1 and not was_stopped(code, log)


def test_a_plan_of_data_that_is_not_prepared_says_what_to_do_and_runs_do_not_start(suite, folders, tmp_path):
    arguments = [suite, f"data.root={folders}", "--out", tmp_path / "out"]
    shown = command("scripts/ablate.py", *arguments, "--dry-run")
    cure = f"{folders}: class folders, not prepared: expected OUT of `en-prepare SOURCE OUT`, or data.loader=folder"
    assert shown.returncode == 0 and f"warning: {cure}; no run would start" in shown.stderr
    assert "3 runs" in shown.stdout
    assert f"error: {cure}" in refused(command("scripts/ablate.py", *arguments))


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("*.pt")}


def test_one_run_of_the_plan_is_shown_as_arguments_of_train_py(suite, tmp_path):
    shown = command("scripts/ablate.py", suite, "--out", tmp_path / "o ut", "--show", "2").stdout.splitlines()
    assert shown[0] == str(suite.parent / "base.yaml") and "task.label_smoothing=0.1" in shown and "seed=0" in shown
    done = command("train.py", *shown, "--print-config")
    assert done.returncode == 0 and "label_smoothing: 0.1" in done.stdout and "o ut/smooth-s0" in done.stdout
    (suite.parent / "other.yaml").write_text((suite.parent / "base.yaml").read_text())
    elsewhere = command("scripts/ablate.py", suite, "--base", suite.parent / "other.yaml", "--show", "2").stdout
    assert f'run_dir="runs/{suite.stem}-other/smooth-s0"' in elsewhere
    assert "--show 6: expected 0 to 2" in refused(command("scripts/ablate.py", suite, "--show", "6"))
    assert "sbatch" in refused(command("scripts/ablate.py", suite, "--out", tmp_path / "out", "--slurm", PATH=""))
    of_several = command("scripts/ablate.py", suite, "--out", tmp_path / "out", OMPI_COMM_WORLD_SIZE="2")
    assert "OMPI_COMM_WORLD_SIZE=2" in refused(of_several) and "3 runs, 0 finished" in of_several.stdout
