"""Scores of groups of images: ReaL's, and ImageNet-C's by corruption and severity."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from en.data import Batch
from en.data.order import Ints
from en.data.sources.imagenet_c import CORRUPTIONS, MAIN, SEVERITIES
from en.runs.scores import DIGITS
from en.tasks.classification import ranks

PLACE = re.compile(f"({'|'.join(CORRUPTIONS)})/([{SEVERITIES[0]}-{SEVERITIES[-1]}])/.+")
ALEXNET = dict(  # errors of 1, mean over severities: google-research/augmix 9b9824c
    zip(
        MAIN,
        (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324, 0.564592,
         0.853204, 0.646056, 0.717840, 0.606500),
        strict=True,
    )
)  # fmt: skip


class Hits(Metric):  # type: ignore[misc]
    """Images that are counted, and those that are right among them, in each of some groups, over all ranks."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        for name in ("right", "images"):
            self.add_state(name, torch.zeros(groups, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, groups: Tensor, right: Tensor) -> None:
        """Adds images by their groups, both (B,)."""
        self.images.index_add_(0, groups, torch.ones_like(groups, dtype=self.images.dtype))
        self.right.index_add_(0, groups, right.to(self.right.dtype))

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.right, self.images


class RealLabels:
    """ReaL's accuracy: an image is right whose highest output is one of its labels; one without labels is left out.

    Args:
        rows: places of the labels among the outputs, (samples, most labels), -1 after the last.
    """

    def __init__(self, rows: Ints, device: torch.device) -> None:
        self._rows, self._hits = torch.from_numpy(rows).to(device), Hits(1).to(device)

    def __call__(self, batch: Batch, predictions: Tensor, targets: Tensor) -> None:
        rows = self._rows[batch.samples.to(self._rows.device)]
        scored = (rows >= 0).any(1)
        right = (rows == predictions.argmax(1)[:, None]).any(1)[scored]
        self._hits.update(torch.zeros_like(right, dtype=torch.int64), right)

    def scores(self) -> dict[str, Any]:
        right, images = (float(each) for each in self._hits.compute())
        return {"images": int(images), "top1": round(100 * right / images, DIGITS) if images else None}


class Corruptions:
    """ImageNet-C's errors, and mCE where all of its 15 corruptions are there at all severities.

    Args:
        names: of the samples.
        samples: those that are scored.
    """

    def __init__(self, names: Sequence[str], samples: Ints, device: torch.device) -> None:
        number: dict[tuple[str, str], int] = {}
        by_sample = np.zeros(len(names), np.int64)
        for sample in samples.tolist():
            found = PLACE.fullmatch(names[sample])
            assert found is not None
            by_sample[sample] = number.setdefault((found[1], found[2]), len(number))
        self._groups, self._samples = list(number), samples
        self._by_sample, self._hits = torch.from_numpy(by_sample).to(device), Hits(len(number)).to(device)

    def parts(self) -> list[Ints]:
        """The samples that are scored, by corruption and severity, in their order."""
        groups = self._by_sample.numpy(force=True)[self._samples]
        return [self._samples[groups == number] for number in range(len(self._groups))]

    @staticmethod
    def named_so(names: Sequence[str]) -> bool:
        """Tells whether all names are ImageNet-C's."""
        return bool(names) and all(map(PLACE.fullmatch, names))

    def __call__(self, batch: Batch, predictions: Tensor, targets: Tensor) -> None:
        self._hits.update(self._by_sample[batch.samples.to(self._by_sample.device)], ranks(predictions, targets) < 1)

    def scores(self) -> dict[str, Any]:
        """The errors in %, by corruption of each severity, None where there are no images; mce, in %."""
        right, images = (each.reshape(-1) for each in self._hits.compute())  # torchmetrics makes a scalar of one group
        wrong = dict(zip(self._groups, (100 * (1 - right / images)).tolist(), strict=True))
        kinds = [kind for kind in CORRUPTIONS if any(group[0] == kind for group in self._groups)]
        errors = {kind: [wrong.get((kind, severity)) for severity in SEVERITIES] for kind in kinds}
        rounded = {
            kind: [None if error is None else round(error, DIGITS) for error in row] for kind, row in errors.items()
        }
        found = mean_corruption_error(errors)
        return ({} if found is None else {"mce": round(found, DIGITS)}) | {"errors": rounded}


def mean_corruption_error(errors: dict[str, list[float | None]]) -> float | None:
    """mCE, %: the mean over 15 corruptions of the mean error over severities, as a share of AlexNet's.

    None where one is missing.
    """
    found = [[error for error in errors.get(kind, []) if error is not None] for kind in MAIN]
    if any(len(row) < len(SEVERITIES) for row in found):
        return None
    return sum(sum(row) / len(row) / ALEXNET[kind] for kind, row in zip(MAIN, found, strict=True)) / len(MAIN)
