"""The statistics of reports, against tables, worked examples and formulas written out."""

import math
import statistics

import pytest
from scipy.integrate import quad

from en.reports.statistics import difference, estimate, holm

T_975 = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 29: 2.0452}  # Student's t, printed tables


@pytest.mark.parametrize(("freedom", "t"), T_975.items())
def test_the_interval_of_a_mean_is_that_of_a_table_of_students_t(freedom, t):
    values = [70 + (7 * k % 11) / 10 for k in range(freedom + 1)]
    found = estimate(values)
    half = t * statistics.stdev(values) / math.sqrt(freedom + 1)
    assert (found.mean, found.sd, found.n) == (statistics.fmean(values), statistics.stdev(values), freedom + 1)
    assert found.high - found.mean == pytest.approx(half, rel=1e-4) == found.mean - found.low


def test_one_value_has_no_interval_and_none_no_mean():
    assert estimate([]) is None
    found = estimate([77.0])
    assert (found.mean, found.n, found.sd, found.low, found.high) == (77.0, 1, None, None, None)


def tail(t: float, freedom: float) -> float:
    """Two-sided p of Student's t, its density integrated."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    inside, _ = quad(lambda x: scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), 0, abs(t))
    return 1 - 2 * inside


def test_runs_of_one_seed_are_paired_and_others_left_out_of_the_pairs():
    first, second = {0: 70.0, 1: 72.0, 2: 71.0, 9: 99.0}, {2: 71.9, 0: 70.6, 1: 73.1, 5: 1.0}
    pairs = [0.6, 1.1, 0.9]
    error = statistics.stdev(pairs) / math.sqrt(3)
    found = difference(first, second)
    assert found.mean == pytest.approx(statistics.fmean(pairs)) and found.method == "paired over 3 seeds"
    assert found.high - found.mean == pytest.approx(4.302653 * error, rel=1e-6)
    assert found.mean - found.low == pytest.approx(4.302653 * error, rel=1e-6)
    assert found.p == pytest.approx(tail(found.mean / error, 2), abs=1e-7)
    opposite = difference(second, first)
    assert (opposite.mean, opposite.low, opposite.p) == pytest.approx((-found.mean, -found.high, found.p))


def test_runs_without_two_common_seeds_are_compared_by_welch():
    first, second = {0: 70.0, 1: 72.0, 2: 71.5}, {2: 74.0, 3: 74.4, 4: 73.9, 5: 74.2}
    parts = [statistics.variance(runs.values()) / len(runs) for runs in (first, second)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    gap = statistics.fmean(second.values()) - statistics.fmean(first.values())
    found = difference(first, second)
    assert found.mean == pytest.approx(gap) and found.method == "Welch, 4 and 3 runs"
    assert found.p == pytest.approx(tail(gap / math.sqrt(sum(parts)), freedom), abs=1e-7)
    half = found.high - found.mean
    assert tail(half / math.sqrt(sum(parts)), freedom) == pytest.approx(0.05, abs=1e-7)


@pytest.mark.parametrize(
    ("first", "second"),
    [({0: 1.0}, {0: 2.0}), ({0: 1.0}, {0: 2.0, 1: 2.1}), ({0: 1.0, 1: 1.3}, {0: 1.1, 1: 1.4})],
    ids=["one run each", "one run on a side", "equal differences"],
)
def test_where_nothing_varies_a_difference_has_no_interval_and_no_p(first, second):
    found = difference(first, second)
    means = statistics.fmean(second.values()) - statistics.fmean(first.values())
    assert found.mean == pytest.approx(means) and (found.low, found.high, found.p) == (None, None, None)
    assert "no test" in found.method


def test_holms_correction_is_that_of_a_worked_example():
    # Four tests: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []
