"""What training and evaluation see of the data: batches, whatever loader they come from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from en.data.crops import CentreCrop, Crop
from en.data.order import Ints, epoch_order, rank_batches
from en.data.palette import Colour
from en.data.targets import Target
from en.size import Size


class Batch(NamedTuple):
    """Images as they leave a loader, on the CPU.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; the memory belongs to the batch.
        targets: (B, ...), as the loader's kind of target has them.
        samples: (B,) int64, indices in the data set.
        damaged: what was wrong with each image that another one stands in for (data.on_error=skip).
    """

    images: Tensor
    targets: Tensor
    samples: Tensor
    damaged: list[str]


@dataclass(frozen=True)
class Part:
    """Which part of each step's samples this process takes.

    Attributes:
        batch_size: samples of a step over all ranks and accumulated micro-batches.
        accumulation: micro-batches of a step.
        rank, world_size: this process among all.
        seed: of the order and the augmentation.
    """

    batch_size: int
    accumulation: int
    rank: int
    world_size: int
    seed: int

    @property
    def micro_batch(self) -> int:
        """Samples of one batch of this rank."""
        return self.batch_size // (self.accumulation * self.world_size)

    def training_batches(self, samples: int, epoch: int, first_step: int) -> list[Ints]:
        """This rank's micro-batches of an epoch from a step on, as indices of the samples."""
        order = epoch_order(samples, self.seed, epoch)
        batches = rank_batches(order, self.batch_size, self.accumulation, self.rank, self.world_size)
        return batches[first_step * self.accumulation :]

    def evaluation_samples(self, samples: int) -> Ints:
        """This rank's samples of all, each exactly once over all ranks."""
        return np.arange(self.rank, samples, self.world_size)

    def batches(self, samples: Ints, size: Size | None) -> list[Ints]:
        """Some samples as batches of this rank: of one, where images have sizes of their own."""
        count = 1 if size is None else self.micro_batch
        return [samples[start : start + count] for start in range(0, len(samples), count)]


class ImageLoader(Protocol):
    """One split of a data set.

    Attributes:
        name: the data set's, with what preparation changed in it.
        split: train, val or test.
        classes: names of what the targets tell apart, in the order of their numbers.
        palette: colours of the classes, for pictures.
        target: the kind of the targets.
        samples: number of images in the split, over all ranks.
        per_class: how many of them each class has; None where the targets are no class numbers.
        digest: hex SHA-256 of what the split consists of, as far as it is known without reading the images: ffcv's
            sizes, targets and places in the file; the folder loader's file names.
        made_by: the libraries that its pixels and their order depend on, with their versions; None: unknown.
    """

    name: str
    split: str
    classes: list[str]
    palette: list[Colour]
    target: Target
    samples: int
    per_class: list[int] | None
    digest: str
    made_by: Mapping[str, str | None]

    def names(self) -> list[str]:
        """One name a sample, in their order, the same by any loader and wherever the set lies (see Sample).

        Raises: UserError for files that were prepared without, by an earlier version.
        """
        ...

    def labels(self) -> Ints:
        """The class numbers of the samples, (samples,) int64. Raises UserError where targets are none."""
        ...

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        """This rank's augmented micro-batches of an epoch: `accumulation` for each of the samples // batch_size steps.

        Args:
            epoch: counted from 0; decides order, crops and flips together with the seed.
            size: of the images, H and W.
            first_step: steps of the epoch that are left out at its beginning.
        Raises: RunError for a damaged sample and for a loader that dies or gives nothing for timeout_s seconds.
        """
        ...

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        """This rank's part of all images, each exactly once over all ranks, cropped for evaluation.

        Args:
            size: of the images; None: each has its own, by the evaluation crop's `whole`, in a batch of one.
        """
        ...

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        """Some images by their indices in the data set, (n,), in that order, as `eval_epoch` gives them."""
        ...

    def close(self) -> None:
        """Ends worker threads or processes."""
        ...


class Wrapped:
    """A loader that shows the samples of another one in its own way: what both have in common (see ImageLoader)."""

    def __init__(self, loader: ImageLoader) -> None:
        self.loader = loader
        self.name, self.split, self.classes, self.palette = loader.name, loader.split, loader.classes, loader.palette
        self.target, self.samples, self.digest = loader.target, loader.samples, loader.digest
        self.per_class, self.made_by = loader.per_class, loader.made_by

    def names(self) -> list[str]:
        return self.loader.names()

    def labels(self) -> Ints:
        return self.loader.labels()

    def train_epoch(self, epoch: int, size: Size, first_step: int = 0) -> Iterator[Batch]:
        return self.loader.train_epoch(epoch, size, first_step)

    def eval_epoch(self, size: Size | None) -> Iterator[Batch]:
        return self.loader.eval_epoch(size)

    def eval_samples(self, samples: Ints, size: Size | None) -> Iterator[Batch]:
        return self.loader.eval_samples(samples, size)

    def close(self) -> None:
        self.loader.close()


STAND_INS = 16  # so many damaged samples in a row end the run


def too_many_damaged(last: str) -> str:
    """The message for STAND_INS damaged samples in a row, by that of the last."""
    return f"{last}, and so are the {STAND_INS - 1} before it: more than data.on_error=skip leaves out"


@dataclass(frozen=True)
class Reading:
    """How images are read, the same for every loader.

    Attributes:
        part: of each step's samples, this process's.
        training_crop, evaluation_crop: which part of an image is seen.
        workers: threads or processes of this rank.
        timeout_s: seconds without a batch after which the loader is given up.
        pinned: batches in page-locked memory, for a GPU.
        skip_damaged: in training, the next whole image of the set stands in for a damaged one, instead of an error.
        padding: the colour of what a view shows beyond an image, 0 to 255.
        decode: own, or ffcv for FFCV's kernels, by the loader of its files.
        verify: when that compares a sample with its checksum: once, always, never.
    """

    part: Part
    training_crop: Crop
    evaluation_crop: Crop
    workers: int
    timeout_s: float
    pinned: bool
    skip_damaged: bool = False
    padding: tuple[int, int, int] = (0, 0, 0)
    decode: str = "own"
    verify: str = "once"

    def of_set(self, cropped: bool) -> "Reading":
        """The same for a set whose images may be stored as evaluation shows them: then nothing is cut off."""
        return replace(self, evaluation_crop=CentreCrop(1.0)) if cropped else self
