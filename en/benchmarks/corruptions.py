"""Measures what corrupting a batch costs, beside a forward pass of a ResNet50 over it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from en.benchmarks.photographs import KINDS, picture
from en.benchmarks.timing import Measured, hardware, interleaved, median, show, write
from en.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption

FORWARD = "resnet50, forward"


def benchmark_corruptions(
    images: int, photos: Path | None, sides: Sequence[int], threads: int, rounds: int, out: Path | None
) -> None:
    """Prints milliseconds of each corruption of a batch, the mean of its severities, and the ratio to a forward pass.

    Args:
        images: of the batch.
        photos: a folder of JPEGs, of which mosaics are made; None: noise with the spectrum of photographs.
        sides: of the images, pixels.
        threads: of the forward pass, and as many of the corruptions.
    """
    where = hardware("cpu", threads)
    print(where)
    network = torchvision.models.resnet50().eval().to(memory_format=torch.channels_last)
    report = {}
    for side in sides:
        pictures = [picture(photos, index, KINDS[0]).resize((side, side)) for index in range(images)]
        batch = torch.from_numpy(np.stack([np.asarray(image) for image in pictures])).permute(0, 3, 1, 2)
        values = batch.float().div(255).contiguous(memory_format=torch.channels_last)
        with ThreadPoolExecutor(threads) as pool:
            cases: dict[str, Callable[[], object]] = {FORWARD: partial(forward, network, values)}
            cases |= {name: partial(corrupt, batch, name, pool) for name in CORRUPTIONS}
            seconds = interleaved(cases, rounds, f"corruptions of {side} pixels", warmups=1)
        report[side] = rows_of(seconds)
        show(f"{images} images of {side} pixels; load {os.getloadavg()[0]:.1f}", report[side])
    write(out, {"hardware": where, "images": images, "photos": str(photos), "rows": report})


def rows_of(seconds: Mapping[str, Sequence[float]]) -> list[Measured]:
    """The median of each case, and of its ratios to the forward pass of the same round."""
    of_one = {name: [each / len(SEVERITIES) for each in taken] for name, taken in seconds.items()}
    of_one[FORWARD] = [*seconds[FORWARD]]
    return [
        {
            "of a batch": name,
            "ms": 1000 * median(taken),
            "/ forward": median([ours / whole for ours, whole in zip(taken, of_one[FORWARD], strict=True)]),
        }
        for name, taken in of_one.items()
    ]


@torch.inference_mode()
def forward(network: torch.nn.Module, images: Tensor) -> None:
    network(images)


def corrupt(images: Tensor, name: str, pool: Executor) -> None:
    """Corrupts a batch once by each severity."""
    samples = torch.arange(len(images))
    for severity in SEVERITIES:
        Corruption(name, severity).apply_to_batch(images, samples, 0, pool)
