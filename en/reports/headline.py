"""The answer first: which variant leads, by how much, and whether that is shown."""

from collections.abc import Sequence
from itertools import combinations

from en.reports.charts import shortened
from en.reports.comparisons import Finding, compare
from en.reports.variants import Peers, Variant

MOST_LETTERS = 80  # of a variant's name


def headlines(every: Sequence[Peers]) -> list[str]:
    """A sentence or two for the variants of each data set, metric and task; none without a finished one."""
    return [f"{peers.name}: {said}" if peers.name else said for peers in every if (said := headline(peers))]


def headline(peers: Peers) -> str:
    """Says which finished variant leads and how sure that is; p is corrected for the comparisons of all of them."""
    if not peers.finished:
        return ""
    first, *others = peers.finished
    score = f"{peers.label.text} {scored(first)} {peers.label.unit}".strip()
    if not others:
        return f"{named(first, peers)} has {score} ({seeds(first)}); no other variant is finished to set it against."
    found = compare(combinations(peers.finished, 2), peers.score)
    own = [each for each in found if each.higher is first]
    tests = sum(each.p is not None for each in found)
    return f"{named(first, peers)} leads with {score}, {over_next(peers, own[0], tests)}{over_others(peers, own[1:])}"


def named(variant: Variant, peers: Peers) -> str:
    """The variant's name without what it shares with all whom it stands beside."""
    shared = set.intersection(*(set(each.marks) for each in peers.variants))
    marks = [mark for mark in variant.marks if mark not in shared]
    return shortened(", ".join([variant.facts["norm"], *marks]), MOST_LETTERS)


def scored(variant: Variant) -> str:
    assert variant.score is not None
    return f"{variant.score.mean:.2f}"


def seeds(*variants: Variant) -> str:
    """Says how many seeds the variants have: one number where they agree."""
    counts = [len(variant.counted) for variant in variants]
    return f"n = {' and '.join(map(str, counts if len({*counts}) > 1 else counts[:1]))}"


def over_next(peers: Peers, found: Finding, tests: int) -> str:
    """How far the leader is above the next one and whether that is shown among so many tests, to the sentence's end."""
    points = "points" if peers.label.unit == "%" else peers.label.unit
    way = "above" if found.gap.mean >= 0 else "seed by seed below"
    amount = " ".join(part for part in (f"{abs(found.gap.mean):.2f}", points, way, named(found.lower, peers)) if part)
    verdict = "shown" if found.is_shown and found.gap.mean > 0 else "not shown"
    more = [key for key in found.differing if key != "norm"]
    besides = f" The two differ in {', '.join(more)} too." if more else ""
    sure = f"{how_sure(found, tests)}; {seeds(found.higher, found.lower)}"
    return f"{amount}, the next: {verdict} ({sure}).{besides}"


def how_sure(found: Finding, tests: int) -> str:
    """The interval of a difference and its p, or why it has none."""
    gap = found.gap
    if gap.low is None or gap.high is None or gap.p is None:
        alone = min(len(found.higher.counted), len(found.lower.counted)) == 1
        return "a single run says nothing of the spread between seeds" if alone else gap.method
    corrected = f", {found.p:.2g} corrected for {tests} comparisons" if tests > 1 else ""
    return f"95 % interval {gap.low:+.2f} to {gap.high:+.2f}, {gap.method}; p = {gap.p:.2g}{corrected}"


def over_others(peers: Peers, found: Sequence[Finding]) -> str:
    """The further variants that the leader is shown to be above; "" without one."""
    names = [named(each.lower, peers) for each in found if each.is_shown and each.gap.mean > 0]
    return f" It is shown to be above {', '.join(names)}." if names else ""
