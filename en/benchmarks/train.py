"""The trainer's images/s against the network's bare step on images in memory, and by its threads."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from en.benchmarks.steps import AUX_WEIGHT, LABEL_PIXELS, loss_of_pixels
from en.benchmarks.threads import compare_threads
from en.benchmarks.timing import finish, hardware, median, show, write
from en.build import build_network, build_to_device, open_loaders
from en.config.reading import dump, validate
from en.config.schema import Config
from en.data import ImageLoader
from en.data.sources import Sample, Source
from en.data.targets import ClassIndex, ClassMap, Target
from en.data.to_device import ToDevice
from en.distributed.device import choose_device
from en.distributed.ranks import Ranks
from en.norm.built import layers_as_built
from en.runs import checkpoint
from en.runs.contents import Checkpoint
from en.runs.position import Position
from en.runs.resume import describe_data
from en.training.epoch import steps_of, train_epoch
from en.training.learner import Learner, build_learner
from en.training.record import EpochRecord

RESOLUTION, SIDE, CLASSES = 128, 160, 10
BATCH = {"resnet50": 16, "fcn_resnet50": 4}  # by network
EVERY = 500  # steps between checkpoints


def benchmark_train(network: str, norm: str, steps: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of the trainer, epochs of `steps` steps, and of a bare step, in turns, and their ratio.

    Beside the ResNet50, also those of a small network by the threads of its run, alone and beside a busy process; see
    compare_threads.

    Args:
        network: resnet50, or fcn_resnet50, which labels pixels.
    """
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import prepare  # needs the package ffcv

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        keys = {"data": {"root": str(root), "workers": threads}, "device": "cpu"}
        if network in LABEL_PIXELS:
            keys["task"] = {"name": "segmentation", "aux_weight": AUX_WEIGHT}
        config, batch = recipe(network, norm, RESOLUTION, BATCH[network], rounds, keys), BATCH[network]
        source = noise_images(steps * batch, SIDE, network in LABEL_PIXELS)
        with redirect_stdout(StringIO()):  # what its masks hold
            prepare(source, root, Storage("raw"), threads, skip_corrupt=False)
        loader = open_loaders(config, Ranks.from_environment(), ("train",))["train"]
        speeds, learner = compare_trainer(config, loader, rounds)
        loader.close()
        seconds = checkpoint_seconds(config, learner, loader, root)
        del learner
        settings = [] if network in LABEL_PIXELS else compare_threads(*small_run(root / "small"), rounds)
    where = hardware("cpu", threads)
    ratio = speeds["trainer"] / speeds["bare step"]
    print(
        f"{where}, {network} with {norm}, batches of {batch} at {RESOLUTION} pixels, "
        f"{rounds} rounds of {steps} steps in turns"
    )
    show("images/s", [{"what": name, "images/s": speed} for name, speed in speeds.items()])
    print(f"trainer / bare step: {ratio:.3f}")
    share = seconds / (EVERY * batch / speeds["trainer"])
    print(f"a checkpoint takes {seconds:.2f} s: {100 * share:.2f} % of the time of {EVERY} steps")
    if settings:
        show("images/s of ShuffleNetV2 x0.5 with bn, batches of 64 at 64 pixels, a run each", settings)
    report = {
        "threads": settings,
        "hardware": where,
        "network": network,
        "norm": norm,
        "speeds": speeds,
        "trainer / bare step": ratio,
    }
    write(out, {**report, "checkpoint s": seconds, f"checkpoint / {EVERY} steps": share})


def recipe(model: str, norm: str, resolution: int, batch_size: int, rounds: int, keys: Mapping[str, Any]) -> Config:
    """A configuration of rounds + 1 epochs; `keys` are added to its sections."""
    tree: dict[str, Any] = {
        "model": {"name": model},
        "norm": {"name": norm},
        "data": {"root": "unused", "resolution": resolution},
        "train": {"epochs": rounds + 1, "batch_size": batch_size},
        "optim": {"lr": 0.01, "weight_decay": 1e-4},
    }
    for key, value in keys.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    return validate(tree, "a benchmark's recipe")


def compare_trainer(config: Config, loader: ImageLoader, rounds: int) -> tuple[dict[str, float], Learner]:
    """Median images/s of the trainer's epochs and of as many bare steps on one batch, in turns; the trained learner."""
    ranks = Ranks.from_environment()
    device = choose_device(config.device, ranks)
    to_device = build_to_device(config, device)
    learner, bare = (build_learner(config, build_network(config, len(loader.classes)), device, ranks) for _ in range(2))
    first = next(iter(loader.train_epoch(0, config.training_resolution.full)))
    batch = to_device(first.images, first.targets)
    trained, alone = [], []
    for epoch in range(rounds + 1):  # the first is a warm-up
        trained.append(trainer_speed(config, learner, loader, to_device, Position(epoch=epoch), ranks))
        alone.append(bare_speed(bare, *batch, steps_of(config, loader)))
    return {"trainer": median(trained[1:]), "bare step": median(alone[1:])}, learner


def trainer_speed(
    config: Config, learner: Learner, loader: ImageLoader, to_device: ToDevice, start: Position, ranks: Ranks
) -> float:
    """Images/s of an epoch."""
    record = EpochRecord(to_device.device)
    for _ in train_epoch(config, learner, loader, to_device, record, start, ranks):
        pass
    finish(to_device.device.type)
    return steps_of(config, loader) * config.train.batch_size / record.seconds


def bare_speed(learner: Learner, images: Tensor, labels: Tensor, steps: int) -> float:
    """Images/s of forward, backward and the optimizer's step on the same batch, again and again."""
    learner.forward.train()
    started = time.perf_counter()
    for _ in range(steps):
        output: Tensor | dict[str, Tensor] = learner(images)
        loss = loss_of_pixels(output, labels) if isinstance(output, dict) else F.cross_entropy(output, labels)
        torch.autograd.backward(loss)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
    finish(images.device.type)
    return steps * len(images) / (time.perf_counter() - started)


def checkpoint_seconds(config: Config, learner: Learner, loader: ImageLoader, folder: Path) -> float:
    """Median time in which a checkpoint in the middle of an epoch is gathered, written and synced to the disk."""
    seconds = []
    for step in range(3):
        started, position = time.perf_counter(), Position(step=step)
        state = Checkpoint(
            **learner.state_dict(),
            position=position,
            ranks=[{"losses": EpochRecord(torch.device("cpu")).state_dict(), "buffers": learner.buffers()}],
            best=None,
            summary=None,
            config=config.model_dump(),
            norms=layers_as_built(learner.model),
            classes=loader.classes,
            data=describe_data("ffcv", loader, loader),
            circumstances={},
        )
        checkpoint.save(state, checkpoint.step_path(folder, position))
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def small_run(root: Path) -> tuple[Path, Path]:
    """Writes recipe and data of a network whose layers are so small that waiting shows. Returns: both places."""
    from en.data.preparation.encode import Storage
    from en.data.preparation.prepare import prepare

    prepare(noise_images(1024, 64), root, Storage("raw"), 1, skip_corrupt=False)
    (root / "recipe.yaml").write_text(dump(recipe("shufflenet_v2_x0_5", "bn", 64, 64, 2, {"device": "cpu"})))
    return root / "recipe.yaml", root


def noise_images(count: int, side: int, masks: bool = False) -> Source:
    """Random pixels, stored raw, and classes or masks: nothing to decode, so that the loader is not what limits."""
    random = np.random.default_rng(0)

    def samples(number: int, split: str) -> list[Sample]:
        pixels = random.integers(0, 256, (number, side, side, 3), np.uint8)
        targets = pixels[..., 0] % CLASSES if masks else [i % CLASSES for i in range(number)]
        return [Sample(f"{split} {i}", image, targets[i]) for i, image in enumerate(pixels)]

    splits = {"train": samples(count, "train"), "val": samples(CLASSES, "val")}
    target: Target = ClassMap({number: number for number in range(CLASSES)}, None) if masks else ClassIndex()
    return Source("noise", [str(i) for i in range(CLASSES)], splits, target)
