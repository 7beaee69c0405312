"""Scores of an evaluation: a number for each metric, and lists of numbers, such as one for each class."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

DIGITS = 6


class Scores(NamedTuple):
    """The metrics of a network over a set.

    Attributes:
        values: numbers by the metric's name.
        details: lists of numbers by the metric's name; None for what has no number, as a class that the set lacks.
    """

    values: dict[str, float]
    details: dict[str, list[float | None]]

    @staticmethod
    def of(computed: Mapping[str, Any]) -> "Scores":
        """Sorts what metrics computed: scalars are values, tensors (n,) details."""
        found = {name: torch.as_tensor(each).double() for name, each in computed.items()}
        values = {name: round(float(each), DIGITS) for name, each in found.items() if each.ndim == 0}
        return Scores(values, {name: listed(each.tolist()) for name, each in found.items() if each.ndim == 1})


def listed(numbers: list[float]) -> list[float | None]:
    return [round(number, DIGITS) if math.isfinite(number) else None for number in numbers]
