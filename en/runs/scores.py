"""Scores of an evaluation: numbers, and lists of them, such as one for each class; and what these were counted from."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from en.data.order import Ints

DIGITS = 6


class Scores(NamedTuple):
    """The metrics of a network over a set.

    Attributes:
        values: numbers by the metric's name.
        details: lists of numbers by the metric's name; None for what has no number, as a class that the set lacks.
        counts: tables of whole numbers by the metric's name, such as class by predicted class. They are in no log.
    """

    values: dict[str, float]
    details: dict[str, list[float | None]]
    counts: dict[str, Ints] = {}  # noqa: RUF012 - never written to

    @staticmethod
    def of(computed: Mapping[str, Any]) -> "Scores":
        """Sorts what metrics computed: scalars are values, tensors (n,) details, and those (n, m) of int64 counts."""
        found = {name: torch.as_tensor(each) for name, each in computed.items()}
        values = {name: round(float(each), DIGITS) for name, each in found.items() if each.ndim == 0}
        details = {name: listed(each.double().tolist()) for name, each in found.items() if each.ndim == 1}
        whole = {name: each for name, each in found.items() if each.ndim == 2 and each.dtype == torch.int64}
        return Scores(values, details, {name: each.cpu().numpy() for name, each in whole.items()})


def listed(numbers: list[float]) -> list[float | None]:
    return [round(number, DIGITS) if math.isfinite(number) else None for number in numbers]
