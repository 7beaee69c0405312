"""Statistics taken of the images that a network is evaluated on, in batches that do not depend on the ranks."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from en.data import Batch, ImageLoader
from en.data.loader import Wrapped
from en.data.order import epoch_order
from en.data.to_device import ToDevice
from en.distributed.collectives import gather_rows
from en.distributed.ranks import Ranks
from en.errors import UserError, shown
from en.evaluation.trained import Trained
from en.norm.adaptation import Moments, averaging_layers, batch_statistics, keeping_averages, replace_averages
from en.progress import Progress, tell
from en.size import Size

BATCH = 128  # images of a batch, unless given (our choice)
FORM = re.compile(r"(none)|(full|batch)(?::(\d{1,6}))?|(partial):(\d{1,9})(?::(\d{1,6}))?")


@dataclass(frozen=True)
class Statistics:
    """Says what layers with running averages normalize by in evaluation.

    Attributes:
        kind: none, the averages of training; full, the moments of the whole set; batch, each batch's; partial, each
            batch's mixed with those of training, which count like `prior` images.
        prior: N of partial.
        size: images of a batch, at most; those of a set differ by at most one.
    """

    kind: str = "none"
    prior: int = 0
    size: int = BATCH

    @classmethod
    def parse(cls, text: str) -> "Statistics":
        """Reads none, full, batch or partial:N, the latter three with :SIZE. Raises UserError."""
        found = FORM.fullmatch(text)
        size = int(found[3] or found[6] or BATCH) if found else 0
        if not found or not size or found[5] == "0":
            expected = "none, full[:SIZE], batch[:SIZE] or partial:N[:SIZE], N and SIZE from 1"
            raise UserError(f"--statistics {shown(text)}: expected {expected}")
        return cls(found[1] or found[2] or found[4], int(found[5] or 0), size)

    def __str__(self) -> str:
        prior = f":{self.prior}" if self.prior else ""
        return self.kind if self.kind == "none" else f"{self.kind}{prior}:{self.size}"

    @contextmanager
    def taken(
        self,
        model: nn.Module,
        loader: ImageLoader,
        size: Size,
        to_device: ToDevice,
        ranks: Ranks,
        seed: int,
        visible: bool = True,
    ) -> Iterator[ImageLoader]:
        """Has a network, the same on all ranks, normalize by these inside `with`; its averages are then as before.

        Args:
            visible: whether the first rank shows how far it is.
        Yields: the loader to evaluate it on.
        """
        if self.kind == "none" or not averaging_layers(model):
            yield loader
            return
        batches = Shuffled(loader, ranks, self.size, seed)
        with keeping_averages(model.eval()):
            if self.kind == "full":
                replace_averages(model, moments_of(model, batches, size, to_device, visible))
                yield loader
                return
            with batch_statistics(model, self.prior):
                yield batches


def say_what_adapts(trained: Trained, statistics: Sequence[Statistics], ranks: Ranks) -> None:
    """Says of a network without running averages that no statistics change it."""
    if ranks.is_first and any(each.kind != "none" for each in statistics) and not averaging_layers(trained.model):
        name = trained.config.norm.name
        tell(f"--statistics: norm.name={name} keeps no running averages: the network is scored as it is")


class Shuffled(Wrapped):
    """Evaluation in batches of images from all over the set, the same batches on any number of ranks.

    Sets are stored class after class, so that batches in that order would have the statistics of a class. The order is
    a permutation by the seed; batch i, whole, is rank i's, modulo the ranks.

    Args:
        size: images of a batch, at most; batches differ by at most one image.
    """

    def __init__(self, loader: ImageLoader, ranks: Ranks, size: int, seed: int) -> None:
        super().__init__(loader)
        order = epoch_order(loader.samples, seed, 0)
        self.batches = np.array_split(order, -(-loader.samples // size))
        self.ranks = ranks

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        own = self.batches[self.ranks.rank :: self.ranks.world_size]
        if own:
            yield from regrouped(self.loader.eval_samples(np.concatenate(own), size), [len(batch) for batch in own])


def regrouped(batches: Iterator[Batch], counts: list[int]) -> Iterator[Batch]:
    """The same images in batches of these counts."""
    kept: list[Batch] = []
    for count in counts:
        while sum(len(batch.samples) for batch in kept) < count:
            kept.append(next(batches))
        images = torch.cat([batch.images for batch in kept])
        targets = torch.cat([batch.targets for batch in kept])
        samples = torch.cat([batch.samples for batch in kept])
        damaged = [name for batch in kept for name in batch.damaged]
        yield Batch(images[:count], targets[:count], samples[:count], damaged)
        kept = [Batch(images[count:], targets[count:], samples[count:], [])]
    assert next(batches, None) is None


@torch.inference_mode()
def moments_of(
    model: nn.Module, batches: Shuffled, size: Size, to_device: ToDevice, visible: bool = True
) -> dict[str, Moments]:
    """The moments that each layer with running averages sees of a set, every batch normalized by its own.

    They are pooled in float64 in the order of the batches, on whichever rank a batch was, so that ranks change no bit
    of them as long as they change none of a batch's forward pass. A layer that did not run is left out.
    """
    layers = averaging_layers(model)
    widths = {name: layer.num_features for name, layer in layers.items()}
    pooled: dict[str, Moments] = {}
    found: dict[str, Moments] = {}
    own, count, world = batches.eval_epoch(size), len(batches.batches), batches.ranks.world_size

    def watch(name: str, moments: Moments) -> None:
        found[name] = found[name].with_more(moments) if name in found else moments

    visible = visible and batches.ranks.is_first
    with batch_statistics(model, watch=watch), Progress("statistics", count, visible) as progress:
        for first in range(0, count, world):
            found.clear()
            batch = next(own, None)  # None on ranks that the last round has none for
            if batch is not None:
                model(to_device(batch.images, batch.targets)[0])
            for row in gather_rows(packed(found, widths, to_device.device)):
                for name, moments in unpacked(row, widths).items():
                    pooled[name] = pooled[name].with_more(moments) if name in pooled else moments
            progress.advance(min(world, count - first))
        assert next(own, None) is None
    return pooled


def packed(moments: dict[str, Moments], widths: dict[str, int], device: torch.device) -> Tensor:
    """All layers' moments in one row, float64; the count of a layer that did not run is 0."""
    parts = [
        torch.cat([moments[name].count[None], moments[name].mean, moments[name].squares])
        if name in moments
        else torch.zeros(1 + 2 * width, dtype=torch.float64, device=device)
        for name, width in widths.items()
    ]
    return torch.cat(parts)


def unpacked(row: Tensor, widths: dict[str, int]) -> dict[str, Moments]:
    parts = torch.split(row, [1 + 2 * width for width in widths.values()])
    moments = {
        name: Moments(part[0], part[1 : 1 + width], part[1 + width :])
        for part, (name, width) in zip(parts, widths.items(), strict=True)
    }
    return {name: each for name, each in moments.items() if each.count > 0}
