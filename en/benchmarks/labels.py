"""Training under the labels of a sidecar against training under a set's own: images a second, in pairs of epochs."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from fractions import Fraction
from io import StringIO
from pathlib import Path

import torch

from en.benchmarks.loader import processors_seconds
from en.benchmarks.timing import finish, hardware, median, show, write
from en.benchmarks.train import noise_images, recipe
from en.build import build_network, build_to_device, open_loaders
from en.data.labels import Sidecar, sidecar_path, write_sidecar
from en.data.labels.rules import RULES, relabel
from en.data.labels.stored import open_stored
from en.distributed.device import choose_device
from en.distributed.ranks import Ranks
from en.progress import Progress
from en.runs.position import Position
from en.training.epoch import train_epoch
from en.training.learner import build_learner
from en.training.record import EpochRecord

BATCH, SIDE, RATE = 64, 32, Fraction("0.4")
NETWORK = {"name": "timm/resnet10t", "options": {"channels": [16, 32, 64, 128], "stem_width": 8}}
WITHOUT, WITH = "the set's own labels", "a sidecar's"
Epoch = Callable[[int], tuple[float, float]]  # trains it; seconds, and the processors' of it


def benchmark_labels(images: int, norm: str, rounds: int, out: Path | None) -> None:
    """Prints images/s of a small network's epochs, where counting weighs most, with a sidecar and without, in pairs."""
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import prepare

    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(StringIO()):
        root = Path(temporary)
        prepare(noise_images(images, SIDE), root, Storage("raw"), threads, skip_corrupt=False)
        write_noisy(root)
        epochs = {name: trainer(root, norm, rounds, labels) for name, labels in ((WITHOUT, None), (WITH, "noisy"))}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
        with Progress("epochs", rounds + 1) as progress:
            for epoch in range(rounds + 1):  # the first is a warm-up
                for name in sorted(epochs, reverse=bool(epoch % 2)):
                    taken[name].append(epochs[name](epoch))
                progress.advance()
    trained, where = images // BATCH * BATCH, hardware("cpu", threads)
    print(
        f"{where}, load {load:.1f}, {NETWORK['name']} with {norm}, batches of {BATCH} at {SIDE} pixels, {rounds} pairs"
    )
    rows, report = [], {}
    for place, unit in enumerate(("s", "CPU s")):
        speeds = {name: [trained / one[place] for one in found[1:]] for name, found in taken.items()}
        ratios = [ours / theirs for ours, theirs in zip(speeds[WITH], speeds[WITHOUT], strict=True)]
        rows += [{"labels": name, "unit": f"images/{unit}", "median": median(each)} for name, each in speeds.items()]
        rows += [{"labels": f"{WITH} / {WITHOUT}", "unit": f"by {unit}", "median": median(ratios)}]
        report[unit] = {"speeds": speeds, "ratios": ratios}
    show("in turns", rows)
    write(out, {"hardware": where, "load": load, "norm": norm, "measured": report})


def write_noisy(root: Path) -> None:
    with open_stored(root) as loader:
        names, clean, classes = loader.names(), loader.labels(), loader.classes
    given = relabel(names, clean, RULES["symmetric"](len(classes)), RATE, 0)
    write_sidecar(Sidecar(names, classes, clean, given), sidecar_path(root, "noisy"))


def trainer(root: Path, norm: str, rounds: int, labels: str | None) -> Epoch:
    """Builds a network with its loader and returns what trains an epoch of it."""
    data = {"data": {"root": str(root), "labels": labels, "resolution": SIDE}, "model": NETWORK, "device": "cpu"}
    config = recipe(str(NETWORK["name"]), norm, SIDE, BATCH, rounds, data)
    ranks = Ranks.from_environment()
    device, loader = choose_device(config.device, ranks), open_loaders(config, ranks, ("train",))["train"]
    learner = build_learner(config, build_network(config, len(loader.classes)), device, ranks)
    to_device = build_to_device(config, device)

    def train(epoch: int) -> tuple[float, float]:
        record, cpu, started = EpochRecord(device), processors_seconds(), time.perf_counter()
        for _ in train_epoch(config, learner, loader, to_device, record, Position(epoch=epoch), ranks):
            pass
        finish(device.type)
        record.outcomes()
        return time.perf_counter() - started, processors_seconds() - cpu

    return train
