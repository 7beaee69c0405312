"""Scores of maps of classes, all from one matrix that counts which class was predicted for which, exactly."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from en.data.targets import IGNORE
from en.tasks.counts import Counts

Absent = Literal["left_out", "zero"]


class Confusion(Counts):
    """Counts pixels by their class and the predicted one: (classes, classes) int64, summed over all ranks.

    Pixels of IGNORE do not count. Subclasses compute from it. torchmetrics' own kinds sort every map, end in float32,
    and take gigabytes where torch is to be deterministic.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes)
        self.classes = classes

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """Takes maps of classes, (B, H, W) each."""
        counted = targets != IGNORE
        pairs = targets[counted].long() * self.classes + predicted[counted].long()
        self.counts += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)

    @property
    def both(self) -> Tensor:
        """Pixels of each class that were predicted as such, float64."""
        return self.counts.diag().double()

    @property
    def labelled(self) -> Tensor:
        """Pixels of each class, float64."""
        return self.counts.sum(1).double()

    @property
    def predicted(self) -> Tensor:
        """Pixels that each class was predicted for, float64."""
        return self.counts.sum(0).double()

    @property
    def overlap(self) -> Tensor:
        """Intersection over union of each class, 0 to 1; not a number for a class that is nowhere."""
        return self.both / (self.labelled + self.predicted - self.both)


class IoU(Confusion):
    """Intersection over union of each class, %, (classes,)."""

    def compute(self) -> Tensor:
        return 100 * self.overlap


class MeanIoU(Confusion):
    """The mean of IoU over the classes that are in the labels or predicted; or over all, those that are not as 0."""

    def __init__(self, classes: int, absent: Absent) -> None:
        super().__init__(classes)
        self.absent = absent

    def compute(self) -> Tensor:
        overlap = self.overlap
        mean = overlap.nanmean() if self.absent == "left_out" else overlap.nansum() / self.classes
        return 100 * mean


class MeanAccuracy(MeanIoU):
    """The mean over classes in the labels of the % of their pixels predicted as such; or over all, others as 0."""

    def compute(self) -> Tensor:
        accuracy = self.both / self.labelled
        mean = accuracy.nanmean() if self.absent == "left_out" else accuracy.nansum() / self.classes
        return 100 * mean


class PixelAccuracy(Confusion):
    """The % of all pixels that count whose class was predicted."""

    def compute(self) -> Tensor:
        return 100 * self.both.sum() / self.labelled.sum()


class ClassesFound(Confusion):
    """How many classes are in the labels or predicted."""

    def compute(self) -> Tensor:
        return (~self.overlap.isnan()).sum()


class Labelled(Confusion):
    """Pixels of each class, (classes,)."""

    def compute(self) -> Tensor:
        return self.labelled


class Predicted(Confusion):
    """Pixels that each class was predicted for, (classes,)."""

    def compute(self) -> Tensor:
        return self.predicted


def confusion_scores(classes: int, absent: Absent) -> MetricCollection:
    """All of them, of one matrix."""
    metrics: dict[str, Metric] = {
        "miou": MeanIoU(classes, absent),
        "macc": MeanAccuracy(classes, absent),
        "aacc": PixelAccuracy(classes),
        "classes_found": ClassesFound(classes),
        "iou": IoU(classes),
        "labelled": Labelled(classes),
        "predicted": Predicted(classes),
        "confusion": Confusion(classes),
    }
    return MetricCollection(metrics, compute_groups=[list(metrics)])
