"""The trainer's images/s against the same network's bare step on images already in memory: what loop and loader cost."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from en.benchmarks.timing import hardware, median, show, write
from en.build import build_network, open_loaders
from en.config.reading import validate
from en.data.ffcv.prepare import Storage, prepare
from en.data.sources import Sample, Source
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint
from en.runs.start import describe_data
from en.tasks.mixing import Mixing
from en.training.epoch import Trainer, train_epoch
from en.training.learner import build_learner
from en.training.record import LossWatch

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
        to_device = ToDevice(config.data.mean, config.data.std, config.train.channels_last, device)
        mixing = Mixing(0.0, 0.0, CLASSES)
        learner, bare = (build_learner(config, build_network(config, CLASSES), device, ranks) for _ in range(2))
        trainer = Trainer(config, learner, loaders["train"], mixing, to_device, ranks)
        images, labels = to_device(*next(iter(loaders["train"].train_epoch(0, RESOLUTION)))[:2])

        def bare_epoch() -> float:
            bare.forward.train()
            started = time.perf_counter()
            for _ in range(steps):
                torch.autograd.backward(F.cross_entropy(bare.forward(images), labels))
                bare.optimizer.step()
                bare.optimizer.zero_grad(set_to_none=True)
            return steps * BATCH / (time.perf_counter() - started)

        trained, alone = [], []
        for epoch in range(rounds + 1):  # the first is a warm-up
            stats = train_epoch(trainer, epoch, LossWatch(device))
            trained.append(stats.images_per_second or 0.0)
            alone.append(bare_epoch())
        loaders["train"].close()
        seconds = checkpoint_seconds(trainer, root)
    where = hardware("cpu", threads)
    speeds = {"trainer": median(trained[1:]), "bare step": median(alone[1:])}
    ratio = speeds["trainer"] / speeds["bare step"]
    print(f"{where}, ResNet50 with {norm}, batches of {BATCH} at {RESOLUTION} pixels, {rounds} rounds of {steps} steps in turns")
    show("images/s", [{"what": name, "images/s": speed} for name, speed in speeds.items()])
    print(f"trainer / bare step: {ratio:.3f}")
    share = seconds / (EVERY * BATCH / speeds["trainer"])
    print(f"a checkpoint takes {seconds:.2f} s: {100 * share:.2f} % of the time of {EVERY} steps")
    report = {"hardware": where, "norm": norm, "speeds": speeds, "trainer / bare step": ratio}
    write(out, {**report, "checkpoint s": seconds, f"checkpoint / {EVERY} steps": share})


def checkpoint_seconds(trainer: Trainer, folder: Path) -> float:
    """Median time in which a checkpoint in the middle of an epoch is gathered, written and synced to the disk."""
    seconds = []
    for step in range(3):
        started = time.perf_counter()
        state = Checkpoint(
            **trainer.learner.state_dict(),
            epoch=0,
            step=step,
            ranks=[{"watch": LossWatch(torch.device("cpu")).state(), "buffers": trainer.learner.buffers()}],
            best={"top1": 0.0, "epoch": 0},
            summary=None,
            config=trainer.config.model_dump(),
            classes=list("0123456789"),
            data=describe_data("ffcv", trainer.loader, trainer.loader),
            circumstances={},
        )
        checkpoint.save(state, checkpoint.step_path(folder, 0, step))
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def noise_images(count: int) -> Source:
    """Random pixels, stored raw: nothing to decode, so that the loader is not what limits."""
    random = np.random.default_rng(0)

    def samples(number: int, split: str) -> list[Sample]:
        pixels = random.integers(0, 256, (number, SIDE, SIDE, 3), np.uint8)
        return [Sample(f"{split} {i}", image, i % CLASSES) for i, image in enumerate(pixels)]

    return Source("noise", [str(i) for i in range(CLASSES)], {"train": samples(count, "train"), "val": samples(CLASSES, "val")})
