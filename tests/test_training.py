"""Training, evaluation and resuming as a user starts them, on real images, in one process and in several."""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import ROOT, command, last_json, refused, succeed
from conftest import CLASSES, PER_CLASS, write_folders
from kill_loop import finish, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from en.build import open_loaders
from en.config.reading import load_config
from en.data.preparation.prepare import Storage, prepare
from en.data.sources import read_source
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.evaluation.evaluate import evaluate
from en.evaluation.trained import open_trained
from en.norm import NORMALIZERS, replace_norm
from en.norm.trained_maps import mixed_layers
from en.runs.tensorboard import EventFile, scalar

VAL = PER_CLASS["val"] * CLASSES
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: en}
data: {root: unset, resolution: 32, workers: 1}
train: {epochs: 2, batch_size: 24}
optim: {lr: 0.05}
schedule: {warmup_epochs: 0.5}
device: cpu
"""
TIMES = ("images_per_second", "data_wait", "seconds")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on two ranks with the ffcv loader."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    succeed("train.py", recipe, f"data.root={betons}", f"run_dir={run}", ranks=2)
    return run


def rows(run: Path) -> list[dict[str, float]]:
    """log.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / name, weights_only=True)["model"]
    return state


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_folder_holds_what_was_run_and_its_results(finished, betons):
    assert {"config.yaml", "provenance.json", "log.jsonl", "summary.json", "last.pt", "best.pt"} <= {
        p.name for p in finished.iterdir()
    }
    log = rows(finished)
    assert [row["epoch"] for row in log] == [1, 2] and all(row["images"] == VAL for row in log)
    summary = json.loads((finished / "summary.json").read_text())
    assert (
        summary["scores"]["top1"] == log[-1]["top1"] and summary["world_size"] == 2 and summary["dataset"] == "clothes"
    )
    assert summary["best_score"] == max(row["top1"] for row in log)
    (start,) = json.loads((finished / "provenance.json").read_text())["starts"]
    assert "train.py" in start["command"] and start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (
        start["hardware"]
        and start["seed"] == 0
        and start["world_size"] == 2
        and "git_commit" in start
        and "git_dirty" in start
    )
    config = load_config(str(finished / "config.yaml"), [])
    assert config.data.root == str(betons) and config.norm.name == "en"


def test_tensorboard_has_the_log(finished):
    recorded, log = scalars(finished), rows(finished)
    assert [value for _, value in recorded["val/top1"]] == pytest.approx([row["top1"] for row in log])
    assert {"train/loss", "train/lr", "val/images", "train/images_per_second", "train/data_wait"} <= recorded.keys()


def test_a_finished_run_that_is_resumed_says_so_and_changes_nothing(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    said = succeed("train.py", "--resume", again).stderr.splitlines()
    assert "finished at epoch 2/2: nothing is left to train; a larger train.epochs trains on from here" in said
    assert rows(again) == rows(finished) and scalars(again) == scalars(finished)
    more = succeed("train.py", "--resume", again, "train.epochs=3").stderr
    assert "nothing is left" not in more and [row["epoch"] for row in rows(again)] == [1, 2, 3]


A_DAY_AHEAD = """# sitecustomize.py of a process whose clock is ahead
import time

now = time.time
time.time = lambda: now() + 86_400
"""


def test_tensorboard_has_every_epoch_of_a_run_whose_clock_was_set_back(recipe, betons, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(A_DAY_AHEAD)
    run = tmp_path / "run"
    arguments = [recipe, "norm.name=bn", f"data.root={betons}", f"run_dir={run}", "checkpoint.keep=9"]
    ahead = f"{tmp_path}{os.pathsep}{ROOT}"
    succeed("train.py", *arguments, PYTHONPATH=ahead)
    (first,) = run.glob("*tfevents*")
    assert int(first.name.split(".")[3]) > time.time() + 80_000
    origin = run / "checkpoints" / "step_00001_00000000.pt"
    for epochs, resume in ((3, origin), (4, "auto")):  # epoch 2 is done again
        succeed("train.py", *arguments, f"train.epochs={epochs}", "--resume", resume, "--drop-later")
    recorded, log = scalars(run), rows(run)
    assert [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert recorded["val/top1"] == [(row["epoch"], pytest.approx(row["top1"])) for row in log]
    assert [step for step, _ in recorded["train/loss"]] == [1, 2, 3, 4]


def test_tensorboard_has_every_epoch_of_starts_within_one_second(tmp_path):
    for epoch in range(1, 13):
        EventFile(tmp_path, epoch).close()  # of a start that was killed before its epoch ended
        events = EventFile(tmp_path, epoch)
        events.add(epoch, [scalar("val/top1", 2.0**epoch)])
        events.close()
    assert scalars(tmp_path)["val/top1"] == [(epoch, 2.0**epoch) for epoch in range(1, 13)]


@pytest.mark.parametrize("ranks", [0, 1, 2, 3])
def test_eval_prints_the_same_exact_scores_on_any_number_of_ranks(finished, ranks):
    result = last_json(succeed("eval.py", finished, ranks=ranks))
    log = rows(finished)[-1]
    assert set(result) == {"top1", "loss", "ece", "images"}  # four classes, of as many images each
    assert result["images"] == VAL and result["top1"] == log["top1"]
    assert result["loss"] == pytest.approx(log["loss"], rel=1e-4)


def test_eval_takes_a_checkpoint_overrides_and_recalibration(finished, folders):
    plain = last_json(succeed("eval.py", finished / "last.pt", "data.loader=folder", f"data.root={folders}"))
    assert plain["images"] == VAL and plain["loss"] == pytest.approx(rows(finished)[-1]["loss"], rel=0.2)
    fresh = last_json(succeed("eval.py", finished, "--recalibrate", 3))
    assert fresh["images"] == VAL and fresh["loss"] != rows(finished)[-1]["loss"]


def test_recalibration_over_more_batches_than_there_are_takes_all_and_says_so(finished, folders):
    whole, more = (succeed("eval.py", finished, "--recalibrate", batches) for batches in (4, 200))
    assert last_json(whole) == last_json(more)
    assert "warning: --recalibrate 200: an epoch has 4 batches: " in more.stderr and "warning" not in whole.stderr
    few = command("eval.py", finished, "--recalibrate", 2, "train.batch_size=97")
    assert "train.batch_size=97: expected at most the 96 training images" in refused(few)


def test_the_final_size_of_the_training_images_decides_what_layers_mix_at_any_other(recipe, betons, tmp_path):
    """128 pixels give maps of 16 x 16 and more up to layer2; the run begins at 32, and is scored at 256."""
    run = tmp_path / "run"
    grows = ["train.progressive={start_resolution: 32, until_epoch: 2}", "data.resolution=128", "train.epochs=1"]
    succeed("train.py", recipe, f"data.root={betons}", f"run_dir={run}", *grows, "train.batch_size=48")
    sizes = {name: int(value) for name, value in weights(run).items() if name.endswith("trained_pixels")}
    assert len(sizes) == 14 and (sizes["bn1.trained_pixels"], sizes["layer3.0.bn2.trained_pixels"]) == (64**2, 8**2)
    mixed = {"bn, in, ln": 8, "bn, ln": 6}
    assert json.loads((run / "summary.json").read_text())["mixed"] == mixed
    trained = open_trained(str(run), ["data.resolution=256", "data.eval_resolution=256"], Ranks(0, 1, 0, 1), ["val"])
    trained.close()
    assert mixed_layers(trained.model) == mixed
    done = succeed("eval.py", run, "--at", 128, 256)
    log, (same, larger) = rows(run)[-1], map(json.loads, done.stdout.splitlines())
    assert (same["resolution"], same["loss"], same["top1"]) == (128, pytest.approx(log["loss"], 1e-5), log["top1"])
    assert (larger["resolution"], larger["images"]) == (256, VAL) and larger["loss"] != same["loss"]
    assert done.stderr.count("docs/compatibility.md") == 1, done.stderr


def test_fewer_images_than_ranks_are_counted_exactly(finished, folders, tmp_path):
    few = write_folders(tmp_path / "few", {"train": 1, "val": 1})
    for path in sorted((few / "val").rglob("*.jpg"))[2:]:
        path.unlink()
    result = last_json(
        succeed("eval.py", finished, "data.loader=folder", f"data.root={few}", "data.workers=0", ranks=3)
    )
    assert result["images"] == 2


def test_the_global_batch_alone_decides_not_ranks_accumulation_or_loader(recipe, betons, tmp_path):
    """gn has no batch statistics, so one rank, two ranks and accumulated micro-batches must train the same network."""
    ways = {
        "one": (0, []),
        "two": (2, []),
        "accumulated": (0, ["train.accumulation=4"]),
        "both": (2, ["train.accumulation=3"]),
    }
    for name, (ranks, extra) in ways.items():
        arguments = [
            recipe,
            "norm.name=gn",
            f"data.root={betons}",
            f"run_dir={tmp_path / name}",
            "train.epochs=1",
            *extra,
        ]
        succeed("train.py", *arguments, ranks=ranks)
    reference = weights(tmp_path / "one")
    for name in list(ways)[1:]:
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(
                value, reference[key], rtol=2e-3, atol=2e-4, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
            )


@pytest.fixture(scope="session")
def more_betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 training and 160 evaluation images of 4 classes, raw."""
    root = tmp_path_factory.mktemp("more")
    folders = write_folders(root / "in", {"train": 100, "val": 40})
    prepare(read_source(str(folders)), root / "out", Storage("raw"), 2, False)
    return root / "out"


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_a_small_network_with_any_normalizer_learns_to_tell_clothes_apart(norm, more_betons, recipe):
    config = load_config(str(recipe), [f"data.root={more_betons}", "train.batch_size=40", "task.crop_scale=[0.5,1.0]"])
    loaders = open_loaders(config, Ranks(0, 1, 0, 1), ("train", "val"))
    prepare_input = ToDevice(config.data.mean, config.data.std, True, torch.device("cpu"))
    torch.manual_seed(0)
    widths = [(3, 16), (16, 32), (32, 32)]
    layers = [part for i, o in widths for part in (nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())]
    model = replace_norm(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)), norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(8):
        for batch in loaders["train"].train_epoch(epoch, (32, 32)):
            images, labels = prepare_input(batch.images, batch.targets)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert (
        evaluate(config.task, model, loaders["val"], (32, 32), prepare_input, visible=False).values["top1"] > 45
    )  # chance is 25


def test_all_options_of_training_work_together(recipe, betons, tmp_path):
    options = [
        "model.name=timm/resnet10t",
        "model.options={channels: [16, 32, 64, 128], stem_width: 8}",  # float16 is slow on a CPU
        "train.precision=float16",
        "train.accumulation=2",
        "train.clip_norm=1.0",
        "task.label_smoothing=0.1",
    ]
    options += ["train.progressive={start_resolution: 16, until_epoch: 2, multiple: 8}", "train.ema_decay=0.5"]
    options += [
        "train.channels_last=false",
        "train.check_every=1",
        "train.epochs=3",
        "norm.sync=true",
        "optim.decay_on=all",
    ]
    options += ["model.zero_init_last_gamma=true", "schedule.name=polynomial"]
    succeed("train.py", recipe, f"data.root={betons}", f"run_dir={tmp_path / 'run'}", *options, ranks=2)
    assert [row["resolution"] for row in rows(tmp_path / "run")] == [16, 24, 32]
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert checkpoint["ema"].keys() == checkpoint["model"].keys() and checkpoint["scaler"]["scale"] > 0
    result = last_json(succeed("eval.py", tmp_path / "run"))
    assert result["top1"] == rows(tmp_path / "run")[-1]["top1"]


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_rate_and_batch(recipe, betons, tmp_path):
    arguments = [
        recipe,
        f"data.root={betons}",
        f"run_dir={tmp_path / 'run'}",
        "optim.lr=1e30",
        "schedule.warmup_epochs=0",
    ]
    alone = command("train.py", *arguments)
    message = alone.stderr.strip().splitlines()[-1]
    assert alone.returncode == 1 and message.startswith("error: the loss is not finite at step ")
    assert "epoch 1" in message and "learning rate" in message and "batch of 24 training samples" in message
    assert "Traceback" not in alone.stderr
    together = command("train.py", *arguments, "run_dir=" + str(tmp_path / "two"), ranks=2, torchrun=False)
    assert together.returncode != 0 and "the loss is not finite at step" in together.stderr


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_folder_worker_that_dies_or_stalls_ends_the_run_with_its_cause(recipe, folders, tmp_path, how):
    arguments = [
        "data.loader=folder",
        f"data.root={folders}",
        f"run_dir={tmp_path / 'run'}",
        "train.epochs=500",
        f"data.timeout_s={3 if how == 'stopped' else 60}",
    ]
    process = start([sys.executable, str(ROOT / "train.py"), str(recipe), *arguments])
    while not (tmp_path / "run" / "summary.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(process.pid).children(recursive=True)[0]
    worker.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    code, errors = finish(process, limit_s=60)
    assert code == 1 and "Traceback" not in errors
    told = f"DataLoader worker{'s gave nothing for 3.0 s' if how == 'stopped' else f' (pid {worker.pid})'}"
    assert f"the data loader failed: {told}" in errors.splitlines()[-1]


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def test_what_the_summary_would_not_hold_is_known_before_the_first_step(recipe, betons, folders, tmp_path):
    small = ["model.name=timm/resnet10t", "norm.name=bn", "train.epochs=1"]
    stock = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))  # without dataset.json, as FFCV's own files
    stock.mkdir()
    for name in ("train.beton", "val.beton", "classes.json"):
        (stock / name).symlink_to(betons / name)
    (tmp_path / "stock").symlink_to(stock)
    succeed("train.py", recipe, *small, f"data.root={tmp_path / 'stock'}", f"run_dir={tmp_path / 'run'}")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dataset"] == r"caf\xe9"
    no_run = f"run_dir={tmp_path / 'none'}"
    for dataset, words in (
        ("x" * 1001, "a name of 1001 characters, more than 900"),
        ("\ud800", "surrogates not allowed"),
    ):
        (stock / "dataset.json").write_text(
            json.dumps({"name": dataset, "storage": {"kind": "jpeg", "max_side": None}})
        )
        refusal = refused(command("train.py", recipe, *small, f"data.root={tmp_path / 'stock'}", no_run))
        assert "dataset.json: expected the output of scripts/prepare_data.py: " in refusal and words in refusal
    long = shutil.copytree(folders, Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + b"\xe9" * 255)))
    (tmp_path / "long").symlink_to(long)
    line = [*small, "data.loader=folder", f"data.root={tmp_path / 'long'}", no_run]
    assert "summary.json: dataset=" in (refusal := refused(command("train.py", recipe, *line)))
    assert "expected at most 1000 characters" in refusal and not (tmp_path / "none").exists()


def test_mistakes_with_run_folders_and_checkpoints_are_refused_in_one_line(recipe, finished, betons, folders, tmp_path):
    data = f"data.root={betons}"
    assert f"run_dir={finished}" in refused(command("train.py", recipe, data, f"run_dir={finished}"))
    assert "nowhere" in refused(command("train.py", recipe, data, "--resume", tmp_path / "nowhere"))
    assert "norm.name=sn: expected" in refused(command("train.py", recipe, data, "norm.name=sn", "--resume", finished))
    assert "norm.eps=0.5" in refused(command("train.py", recipe, data, "norm.eps=0.5", "--resume", finished))
    succeed("train.py", recipe, data, "norm.eps=1e-5", "--resume", finished)  # the default, written out
    assert "batch_size=25" in refused(
        command("train.py", recipe, data, "train.batch_size=25", "train.accumulation=5", RANK="0", WORLD_SIZE="2")
    )
    assert "batch_size=1000" in refused(command("train.py", recipe, data, "train.batch_size=1000"))
    assert "norm.name=gn" in refused(command("train.py", recipe, data, "norm.name=gn", "norm.groups=7"))
    assert "cuda" in refused(command("train.py", recipe, data, "device=cuda"))
    (tmp_path / "broken.pt").write_bytes((finished / "last.pt").read_bytes()[:5000])
    assert "broken.pt" in refused(command("eval.py", tmp_path / "broken.pt"))
    (tmp_path / "malicious.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    assert "malicious.pt" in refused(command("eval.py", tmp_path / "malicious.pt"))
    torch.save({"state": 1}, tmp_path / "other.pt")
    assert "other.pt" in refused(command("eval.py", tmp_path / "other.pt"))
    torch.save(Malicious(tmp_path / "ran"), tmp_path / "malicious.pt")
    assert "malicious.pt" in refused(command("eval.py", tmp_path / "malicious.pt"))
    assert not (tmp_path / "ran").exists()
    assert "lrr" in refused(command("eval.py", finished, "optim.lrr=3"))
    assert "expected the weights" in refused(command("eval.py", finished, "norm.shared_affine=true"))
    assert "norm.name=gn: expected en, the normalizer of" in refused(command("eval.py", finished, "norm.name=gn"))
