"""The ratios of a set in numbers: over its samples, its classes and the epochs, and its samples at either extreme."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from en.reports.statistics import half_width
from en.runs.ratios import EpochRatios, Layer, Ratios

EXTREMES = 6  # samples at either end
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Spread(NamedTuple):
    """One normalizer's ratio in one layer over all samples; sd is the sample standard deviation, None of one sample.

    The layers' positions count from 1, bottom to top; q05 to q95 are quantiles.
    """

    position: int
    layer: str
    normalizer: str
    mean: float
    sd: float | None
    minimum: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    maximum: float


class ClassMean(NamedTuple):
    """One normalizer's mean ratio over the images of a class, in one layer, and how far it is from that of all images.

    The place is bottom, middle or top; sd is the sample standard deviation over the images, None of one image.
    """

    place: str
    layer: str
    normalizer: str
    target: int
    name: str
    images: int
    mean: float
    difference: float
    sd: float | None

    @property
    def overall(self) -> float:
        """The mean over all images."""
        return self.mean - self.difference

    def half(self, comparisons: int = 1) -> float | None:
        """Half of the 95 % interval of the difference, the mean over all images taken as known; None of one image."""
        return None if self.sd is None else half_width(self.sd, self.images, comparisons)

    def leans(self, classes: int) -> bool:
        """Tells whether the difference is shown: the interval, corrected for so many classes, does not contain 0."""
        half = self.half(classes)
        return half is not None and abs(self.difference) > half


class EpochMean(NamedTuple):
    """One normalizer's mean ratio in one layer over the evaluation set, after an epoch, counted from 1."""

    epoch: float
    layer: str
    normalizer: str
    mean: float


class Extreme(NamedTuple):
    """A sample with one of the lowest or highest ratios of a normalizer in one layer; rank 1 is the utmost.

    The target is -1 and the name empty for samples of a task without classes.
    """

    place: str
    layer: str
    normalizer: str
    end: str
    rank: int
    sample: int
    target: int
    name: str
    ratio: float


def takes_part(mean: float) -> bool:
    """Tells whether a normalizer with that mean ratio is mixed at all.

    The softmax gives every one that takes part a share above 0; one that `min_pixels` leaves out has exactly 0.
    """
    return mean > 0


RatioRow = Spread | ClassMean | EpochMean | Extreme
Columns = Mapping[str, Sequence[Any] | NDArray[Any]]  # of a table, by its heading, all of one length


def spreads(ratios: Ratios) -> list[Spread]:
    """One row for each layer and normalizer, bottom to top."""
    rows = []
    for position, (name, layer) in enumerate(ratios.layers.items(), 1):
        for kind, column in columns_of(layer):
            mean = float(column.mean(dtype=np.float64))
            sd = float(column.std(dtype=np.float64, ddof=1)) if len(column) > 1 else None
            rows.append(Spread(position, name, kind, mean, sd, *np.quantile(column, QUANTILES).tolist()))
    return rows


def class_means(ratios: Ratios) -> list[ClassMean]:
    """Rows for every class that has images, at a bottom, a middle and a top layer.

    None for a task without classes, and none where all samples have the same ratio.
    """
    of_classes = ratios.targets >= 0
    targets = ratios.targets[of_classes]
    counts = np.bincount(targets, minlength=len(ratios.classes))
    rows = []
    for place, name in ratios.places.items():
        layer = ratios.layers[name]
        for kind, column in differing(layer):
            overall = float(column.mean(dtype=np.float64))
            away = column[of_classes] - overall
            sums = np.bincount(targets, weights=away, minlength=len(ratios.classes))
            squares = np.bincount(targets, weights=away**2, minlength=len(ratios.classes))
            for target in np.flatnonzero(counts).tolist():
                images, difference = int(counts[target]), float(sums[target] / counts[target])
                about = max(0.0, float(squares[target]) - images * difference**2)
                sd = math.sqrt(about / (images - 1)) if images > 1 else None
                known = (target, ratios.classes[target], images)
                rows.append(ClassMean(place, name, kind, *known, overall + difference, difference, sd))
    return rows


def epoch_means(epochs: Iterable[EpochRatios]) -> list[EpochMean]:
    return [
        EpochMean(row.epoch, layer, kind, mean)
        for row in epochs
        for layer, means in row.ratios.items()
        for kind, mean in means.items()
    ]


def extremes(ratios: Ratios) -> list[Extreme]:
    """The samples at either end of each normalizer's ratio, at a bottom, a middle and a top layer.

    The utmost comes first, and of equal ones that with the lower index. None where all samples have the same ratio.
    """
    rows = []
    for place, name in ratios.places.items():
        layer = ratios.layers[name]
        for kind, column in differing(layer):
            for end, order in (("lowest", column), ("highest", -column)):
                for rank, sample in enumerate(np.argsort(order, kind="stable")[:EXTREMES].tolist(), 1):
                    target = int(ratios.targets[sample])
                    of_class = ratios.classes[target] if target >= 0 else ""
                    found = (rank, sample, target, of_class, float(column[sample]))
                    rows.append(Extreme(place, name, kind, end, *found))
    return rows


def rows_table(kind: type[RatioRow], rows: Sequence[RatioRow]) -> Columns:
    """Makes a table of rows; one of no rows has its columns all the same."""
    return {name: [row[at] for row in rows] for at, name in enumerate(kind._fields)}


def samples_table(ratios: Ratios) -> Columns:
    """Makes a table of the samples: index, class number, class name, and the ratio in each column `layer/normalizer`.

    The ratios are not copied.
    """
    targets = [target if target >= 0 else None for target in ratios.targets.tolist()]
    names = [None if target is None else ratios.classes[target] for target in targets]
    columns: dict[str, NDArray[np.float32]] = {}
    for name, layer in ratios.layers.items():
        columns |= {f"{name}/{kind}": column for kind, column in columns_of(layer)}
    return {"sample": range(len(targets)), "target": targets, "class": names, **columns}


def columns_of(layer: Layer) -> list[tuple[str, NDArray[np.float32]]]:
    """The ratios of each normalizer, (N,), with its name."""
    return [*zip(layer.normalizers, layer.ratios.T, strict=True)]


def differing(layer: Layer) -> list[tuple[str, NDArray[np.float32]]]:
    """Those that are not the same for all samples."""
    return [(kind, column) for kind, column in columns_of(layer) if column.min() < column.max()]
