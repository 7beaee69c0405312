"""Metrics of what a classifier gets right class by class, and of how sure it is: all from whole numbers."""

import torch
from torch import Tensor

from en.tasks.counts import Counts

MOST = 2048  # classes of which every pair is counted, 32 MiB of int64 (our choice)
BINS = 15  # of confidence
SURE = 2**24  # a confidence of 1 as a whole number; float32 knows no finer ones next to it


class Hits(Counts):
    """Images of each class and how many of them were recognized: `hits`, (classes, 2).

    Where classes have unequal numbers of images, `macro_top1` is the mean over the classes that have any of the % that
    were recognized; else it would be top1 again.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, 2)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        right = (outputs.argmax(1) == targets).to(torch.int64)
        self.counts.index_add_(0, targets, torch.stack([torch.ones_like(right), right], 1))

    def compute(self) -> dict[str, Tensor]:
        images, right = self.counts[self.counts[:, 0] > 0].unbind(1)
        found = {"hits": self.counts}
        if len(images) and (images != images[0]).any():
            found["macro_top1"] = 100 * (right.double() / images.double()).mean()
        return found


class ImageConfusion(Counts):
    """Counts images by their class and the predicted one, (classes, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        pairs = targets * len(self.counts) + outputs.argmax(1)
        self.counts.view(-1).index_add_(0, pairs, torch.ones_like(pairs))


class Calibration(Counts):
    """The expected calibration error, `ece`, %: how far confidence is from the share of images recognized.

    The confidence of an image is its highest softmax. Of BINS bins of one width, each with its upper end, so that a
    confidence of exactly 1 is in the last one, it is the mean over images of |share recognized - mean confidence| (Guo
    et al. 2017, equation 3). `calibration`, (BINS, 3), holds images, recognized ones, and the sum of confidences in
    parts of SURE, so that it is the same in any order. (torchmetrics 1.9.0 puts a confidence of 1 into a bin of its
    own, and takes logits that lie within 0 and 1 for probabilities.)
    """

    def __init__(self) -> None:
        super().__init__(BINS, 3)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        right = (outputs.argmax(1) == targets).to(torch.int64)
        sure = (outputs.double().softmax(1).amax(1).nan_to_num() * SURE).round().to(torch.int64)
        bins = ((sure * BINS - 1) // SURE).clamp(0, BINS - 1)
        self.counts.index_add_(0, bins, torch.stack([torch.ones_like(sure), right, sure], 1))

    def compute(self) -> dict[str, Tensor]:
        images, right, sure = self.counts.double().unbind(1)
        return {"calibration": self.counts, "ece": 100 * (right - sure / SURE).abs().sum() / images.sum()}


def class_metrics(classes: int) -> dict[str, Counts]:
    """All of them, of logits, (B, classes), and class numbers, (B,); pairs of classes up to MOST of these."""
    found: dict[str, Counts] = {"hits": Hits(classes), "calibration": Calibration()}
    return found | ({"confusion": ImageConfusion(classes)} if classes <= MOST else {})
