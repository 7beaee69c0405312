"""A loader of images that are in memory already, so that nothing but the trainer itself can be slow."""

from collections.abc import Iterator, Mapping
from itertools import cycle, islice

import numpy as np
import torch

from en.data import Batch
from en.data.order import Ints
from en.data.palette import varied
from en.data.targets import ClassIndex, Target
from en.size import Size

DISTINCT = 4  # batches that are kept, and shown again and again


class MemoryLoader:
    """Random images (see ImageLoader).

    Args:
        steps: of an epoch.
        batch_size: of each.
        side: of the images, pixels.
        classes: how many.
        pinned: in page-locked memory, for a GPU.
    """

    digest = ""
    name, split = "noise", "train"
    target: Target = ClassIndex()

    def __init__(self, steps: int, batch_size: int, side: int, classes: int, pinned: bool) -> None:
        self.samples = steps * batch_size
        self.made_by: Mapping[str, str | None] = {}
        self.classes, self.palette = [str(number) for number in range(classes)], varied(classes)
        self.per_class: list[int] | None = None
        random = torch.Generator().manual_seed(0)
        indices = torch.arange(batch_size)
        self._batches = []
        for _ in range(DISTINCT):
            images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8, generator=random)
            self._batches.append(Batch(images.pin_memory() if pinned else images, indices % classes, indices, []))

    def names(self) -> list[str]:
        return [f"noise[{sample}]" for sample in range(self.samples)]

    def labels(self) -> Ints:
        return np.resize(self._batches[0].targets.numpy(), self.samples)

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        return islice(cycle(self._batches), self.samples // len(self._batches[0].samples) - first_step)

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return islice(cycle(self._batches), self.samples // len(self._batches[0].samples))

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        images, targets, *_ = self._batches[0]
        places = torch.from_numpy(samples % len(images))
        yield Batch(images[places], targets[places], torch.from_numpy(samples), [])

    def close(self) -> None:
        pass
