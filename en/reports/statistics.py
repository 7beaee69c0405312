"""Means over seeds, differences between them, and how sure they are."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95  # of every interval
ROUNDING = 1e-9  # a spread below this share of the values is none


@dataclass(frozen=True)
class Estimate:
    """The mean of some runs.

    Attributes:
        mean, n: of how many values.
        sd: their sample standard deviation; None for a single one.
        low, high: ends of the 95 % interval of the mean by Student's t, n - 1 degrees of freedom; None as above.
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """How much higher one mean is than another.

    Attributes:
        mean, low, high: with the 95 % interval; None where runs do not show how much they vary.
        p: of Student's t test of no difference, two-sided; None as above.
        method: in words: how it was taken, and over how many runs.
    """

    mean: float
    method: str
    low: float | None = None
    high: float | None = None
    p: float | None = None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard deviation and interval; None without a value."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, 1)
    sd = statistics.stdev(values)
    half = half_width(sd, n)
    return Estimate(mean, n, sd, mean - half, mean + half)


def half_width(sd: float, n: int, comparisons: int = 1) -> float:
    """Half of the interval of a mean of n > 1 values by Student's t, 95 % or, by Bonferroni, of all comparisons."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, n - 1)) * sd / math.sqrt(n)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """`second` minus `first`, both by seed and neither empty.

    Paired over the seeds that both have, where those are two or more: the runs of a pair share the order of their
    images. Else Welch's, which lets the two vary unequally. A single run on one side shows no spread: no interval.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) > 1:
        pairs = [second[seed] - first[seed] for seed in shared]
        return tested(pairs, None, f"paired over {len(shared)} seeds")
    if min(len(first), len(second)) > 1:
        return tested([*second.values()], [*first.values()], f"Welch, {len(second)} and {len(first)} runs")
    gap = statistics.fmean(second.values()) - statistics.fmean(first.values())
    return Difference(gap, f"no test: {len(second)} and {len(first)} runs, {len(shared)} of one seed")


def tested(values: list[float], others: list[float] | None, method: str) -> Difference:
    """The mean of paired differences, or of `values` minus that of `others`, with Student's t or Welch's test."""
    gap = statistics.fmean(values) - (statistics.fmean(others) if others else 0.0)
    groups = [values, others] if others else [values]
    if all(statistics.stdev(group) <= ROUNDING * max(map(abs, [*group, 1.0])) for group in groups):
        return Difference(gap, f"{method}, which do not vary: no test")
    result = stats.ttest_ind(values, others, equal_var=False) if others else stats.ttest_1samp(values, 0.0)
    interval = result.confidence_interval(LEVEL)
    return Difference(gap, method, float(interval.low), float(interval.high), float(result.pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """p values of several tests, corrected so that any false finding among them is as rare as one alone would be.

    The k-th smallest of m is multiplied by m - k + 1, and none is below one that was smaller (Holm 1979).
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected
