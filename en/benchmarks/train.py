"""The trainer's images/s against the network's bare step on images already in memory: what loop and loader cost."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from en.benchmarks.timing import hardware, median, show, write
from en.build import build_network, build_to_device, open_loaders
from en.config.reading import validate
from en.config.schema import Config
from en.data import ImageLoader
from en.data.ffcv.prepare import Storage, prepare
from en.data.sources import Sample, Source
from en.distributed.ranks import Ranks
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint
from en.runs.position import Position
from en.runs.start import describe_data
from en.training.epoch import train_epoch
from en.training.learner import Learner, build_learner
from en.training.record import EpochRecord

BATCH, RESOLUTION, SIDE, CLASSES = 16, 128, 160, 10
EVERY = 500  # steps between checkpoints


def benchmark_train(norm: str, steps: int, rounds: int, out: Path | None) -> None:
    """Prints images/s of the trainer, epochs of `steps` steps, and of a bare step, in turns, and their ratio."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = validate(
            {
                "model": {"name": "resnet50"},
                "norm": {"name": norm},
                "data": {"root": str(root), "resolution": RESOLUTION, "workers": threads},
                "train": {"epochs": rounds + 1, "batch_size": BATCH, "channels_last": True},
                "optim": {"lr": 0.01, "weight_decay": 1e-4},
                "schedule": {"name": "cosine"},
                "device": "cpu",
            },
            "scripts/benchmark.py train",
        )
        ranks, device = Ranks.from_environment(), torch.device("cpu")
        prepare(noise_images(steps * BATCH), root, Storage("raw"), threads, skip_corrupt=False)
        loaders = open_loaders(config, ranks, ("train",))
        to_device = build_to_device(config, device)
        learner, bare = (build_learner(config, build_network(config, CLASSES), device, ranks) for _ in range(2))
        images_of_an_epoch = steps * BATCH
        images, labels = to_device(*next(iter(loaders["train"].train_epoch(0, RESOLUTION)))[:2])

        def bare_epoch() -> float:
            bare.forward.train()
            started = time.perf_counter()
            for _ in range(steps):
                torch.autograd.backward(F.cross_entropy(bare.forward(images), labels))
                bare.optimizer.step()
                bare.optimizer.zero_grad(set_to_none=True)
            return images_of_an_epoch / (time.perf_counter() - started)

        trained, alone = [], []
        for epoch in range(rounds + 1):  # the first is a warm-up
            record, start = EpochRecord(device), Position(epoch=epoch)
            for _ in train_epoch(config, learner, loaders["train"], to_device, record, start, ranks):
                pass
            trained.append(images_of_an_epoch / record.seconds)
            alone.append(bare_epoch())
        loaders["train"].close()
        seconds = checkpoint_seconds(config, learner, loaders["train"], root)
    where = hardware("cpu", threads)
    speeds = {"trainer": median(trained[1:]), "bare step": median(alone[1:])}
    ratio = speeds["trainer"] / speeds["bare step"]
    print(
        f"{where}, ResNet50 with {norm}, batches of {BATCH} at {RESOLUTION} pixels, "
        f"{rounds} rounds of {steps} steps in turns"
    )
    show("images/s", [{"what": name, "images/s": speed} for name, speed in speeds.items()])
    print(f"trainer / bare step: {ratio:.3f}")
    share = seconds / (EVERY * BATCH / speeds["trainer"])
    print(f"a checkpoint takes {seconds:.2f} s: {100 * share:.2f} % of the time of {EVERY} steps")
    report = {"hardware": where, "norm": norm, "speeds": speeds, "trainer / bare step": ratio}
    write(out, {**report, "checkpoint s": seconds, f"checkpoint / {EVERY} steps": share})


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
            classes=loader.classes,
            data=describe_data("ffcv", loader, loader),
            circumstances={},
        )
        checkpoint.save(state, checkpoint.step_path(folder, position))
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def noise_images(count: int) -> Source:
    """Random pixels, stored raw: nothing to decode, so that the loader is not what limits."""
    random = np.random.default_rng(0)

    def samples(number: int, split: str) -> list[Sample]:
        pixels = random.integers(0, 256, (number, SIDE, SIDE, 3), np.uint8)
        return [Sample(f"{split} {i}", image, i % CLASSES) for i, image in enumerate(pixels)]

    return Source(
        "noise", [str(i) for i in range(CLASSES)], {"train": samples(count, "train"), "val": samples(CLASSES, "val")}
    )
