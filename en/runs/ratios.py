"""The ratios of a run's network: of every sample of a set, and epoch by epoch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError

from en.config.section import Section
from en.errors import warn
from en.runs.read import whole_rows
from en.runs.summary import Epochs, Name

RatioShare = Annotated[float, Field(ge=0, le=1)]


class Layer(NamedTuple):
    """One EN layer.

    Attributes:
        normalizers: their names, K of them.
        ratios: (N, K) in the order of the samples and of the normalizers; each column lies in one piece.
    """

    normalizers: tuple[str, ...]
    ratios: NDArray[np.float32]


@dataclass(frozen=True)
class Ratios:
    """The ratios of every EN layer for every sample of a set.

    Attributes:
        classes: names of what the targets tell apart, in the order of their numbers.
        targets: (N,) int64, the number of each sample's class; -1 for samples of a task without classes.
        layers: by name as in model.named_modules(), in the order in which the network runs them, bottom to top.
    """

    classes: list[str]
    targets: NDArray[np.int64]
    layers: dict[str, Layer]

    @property
    def places(self) -> dict[str, str]:
        """Up to three layers to look at closely, by where they are: bottom, middle and top."""
        names = [*self.layers]
        places = {len(names) // 2: "middle", len(names) - 1: "top", 0: "bottom"}
        return {place: names[at] for at, place in sorted(places.items())}


class EpochRatios(Section):
    """A row of ratios.jsonl: the mean ratio of each normalizer in each layer, by name, over the evaluation set."""

    model_config = ConfigDict(extra="ignore")

    epoch: Epochs
    ratios: dict[Name, dict[Name, RatioShare]]


def read_epochs(run: Path) -> list[EpochRatios]:
    """A run's ratios epoch by epoch; torn rows are left out with a warning. Empty where the run did not log them."""
    path = run / "ratios.jsonl"
    return [row for found in whole_rows(path) if (row := epoch_ratios(found, path)) is not None]


def epoch_ratios(row: dict[str, Any], path: Path) -> EpochRatios | None:
    try:
        return EpochRatios.model_validate(row)
    except ValidationError:
        warn(f"{path}: the row of epoch {row['epoch']} holds no ratios: left out")
        return None
