"""bn, sn and en trained for a few epochs on small images: top-1 on the test set, mean and deviation over seeds."""

import math
import statistics
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from en.benchmarks.gpu.cifar import CLASSES, Split, batches, generated, read_pickles, scaled
from en.benchmarks.gpu.report import Report, Setup
from en.benchmarks.steps import small_network
from en.norm import replace_norm

NAMES, SEEDS = ("bn", "sn", "en"), (0, 1, 2)
EPOCHS, BATCH, RATE = 10, 128, 0.1
MOST = 12_800  # training images: so that three seeds fit in the time; with more of it (--minutes) too


def accuracy(setup: Setup, report: Report) -> None:
    """Seed by seed, so that a cut leaves a fair comparison."""
    training, test, what = data(setup)
    epochs, seeds, names = (1, SEEDS[:1], NAMES) if setup.tiny else (EPOCHS, SEEDS, NAMES)
    title = f"{len(training.labels)} {what}, {epochs} epochs of batches of {BATCH}, tested on {len(test.labels)}"
    if setup.images is None:
        report.note("no --images: generated ones, which show that training works, and nothing about accuracy")
    found: dict[str, list[float]] = {name: [] for name in names}
    needed = 0.0
    for seed, name in product(seeds, names):
        if needed > setup.left():
            report.note(f"{name}, seed {seed}: skipped: {setup.left():.0f} s left, a run takes {needed:.0f}")
            continue
        with report.attempt(f"{name}, seed {seed}"):
            began = time.monotonic()
            top1 = trained(setup, name, seed, training, test, epochs)
            needed = time.monotonic() - began
            found[name].append(top1)
            report.row(f"{title}: runs", normalizer=name, seed=seed, **{"top-1 %": top1, "seconds": needed})
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values) if values else None
        report.row(title, normalizer=name, **{"top-1 %": mean, "deviation": spread, "n": len(values)})


def data(setup: Setup) -> tuple[Split, Split, str]:
    """Training and test images, and what they are."""
    if setup.images is not None:
        training, test = read_pickles(setup.images, setup.device)
        return Split(training.images[:MOST], training.labels[:MOST]), test, "first images of CIFAR-10"
    count, checked = (2 * BATCH, BATCH) if setup.tiny else (MOST, 4000)
    made = generated(count, 1, setup.device), generated(checked, 2, setup.device)
    return *made, "GENERATED images"


def small_resnet(tiny: bool) -> nn.Module:
    """torchvision's ResNet18 with a first convolution of 3 x 3 and no pooling after it, as is usual at 32 pixels."""
    if tiny:
        return small_network(classes=CLASSES)
    import torchvision

    network: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def trained(setup: Setup, name: str, seed: int, training: Split, test: Split, epochs: int) -> float:
    """Top-1 in percent after training with SGD, a linear warm-up of one epoch and a cosine; bfloat16."""
    torch.manual_seed(seed)
    network = replace_norm(small_resnet(setup.tiny), name).to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(training.labels) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step / steps, epochs))
    network.train()
    for epoch in range(epochs):
        for images, labels in batches(training, BATCH, seed=1000 * seed + epoch):
            with torch.autocast(setup.device, torch.bfloat16):
                outputs = network(images)
            torch.autograd.backward(F.cross_entropy(outputs.float(), labels))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    return scored(network.eval(), test, setup.device)


def share_of_rate(epoch: float, epochs: int) -> float:
    """What of the rate is used at a real-valued epoch."""
    return min(epoch, 1.0, 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0))))


@torch.no_grad()
def scored(network: Callable[[torch.Tensor], torch.Tensor], test: Split, device: str) -> float:
    """Top-1 in percent."""
    right = 0
    for images, labels in zip(torch.split(test.images, 1000), torch.split(test.labels, 1000), strict=True):
        with torch.autocast(device, torch.bfloat16):
            right += int((network(scaled(images)).argmax(1) == labels).sum())
    return 100 * right / len(test.labels)
