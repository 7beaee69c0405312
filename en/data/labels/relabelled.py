"""A loader whose targets are those of a sidecar."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from en.data.labels.sidecar import Sidecar, of_samples, read_sidecar
from en.data.loader import Batch, ImageLoader, Wrapped
from en.data.order import Ints
from en.errors import UserError
from en.size import Size


class Relabelled(Wrapped):
    """A loader's images under the labels of a sidecar; what is stored stays as it is (see ImageLoader).

    Attributes:
        sidecar: the labels, in the order of the samples.
        clean, given: their class numbers, (samples,) int64.
    """

    def __init__(self, loader: ImageLoader, sidecar: Sidecar) -> None:
        super().__init__(loader)
        self.sidecar = sidecar
        self.clean, self.given = torch.from_numpy(sidecar.clean), torch.from_numpy(sidecar.given)
        self.per_class = np.bincount(sidecar.given, minlength=len(loader.classes)).tolist()

    def labels(self) -> Ints:
        return self.sidecar.given

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        return self._relabelled(super().train_epoch(epoch, size, first_step))

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return self._relabelled(super().eval_epoch(size))

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        return self._relabelled(super().eval_samples(samples, size))

    def _relabelled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            # In place: the memory is the batch's, pinned where the loader pins it.
            batch.targets.copy_(self.given[batch.samples])
            yield batch


def relabelled(loader: ImageLoader, path: Path) -> Relabelled:
    """Gives a training set's samples the labels of a file, each by its name.

    Raises: UserError for a file that cannot be used or is of another set, and for targets that are no class numbers.
    """
    stored = loader.labels()
    sidecar = of_samples(read_sidecar(path, loader.classes), loader.names(), path)
    for sample in np.flatnonzero(sidecar.clean != stored)[:1].tolist():
        name, classes = sidecar.names[sample], loader.classes
        found, own = classes[sidecar.clean[sample]], classes[stored[sample]]
        raise UserError(f"{path}: {name} is of {found}: expected {own}, as in the set: the labels are of another one")
    return Relabelled(loader, sidecar)


def relabelling(loader: ImageLoader) -> Relabelled | None:
    """The loader as one that gives labels of a sidecar; None for one that gives those of its set."""
    return loader if isinstance(loader, Relabelled) else None
