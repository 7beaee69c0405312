"""Variants set against each other: differences of their scores, and what they cost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from en.reports.statistics import Difference, difference, holm
from en.reports.tables import Cell, Note, Table, interval, mean, number, words
from en.reports.variants import Peers, Variant, heading, unlike

PAIRWISE = 8  # more variants are compared with one of them only
SIGNIFICANT = 0.05
NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Finding:
    """How far the scores of two finished variants are apart.

    Attributes:
        higher, lower: the variants, by their means over all their seeds.
        gap: higher less lower.
        p: of the gap, corrected for all comparisons that were made with it; None where there was no test.
    """

    higher: Variant
    lower: Variant
    gap: Difference
    p: float | None

    @property
    def is_shown(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT

    @property
    def differing(self) -> list[str]:
        """Returns what the two differ in."""
        return [*unlike(self.higher.facts, self.lower.facts)]


def compare(pairs: Iterable[tuple[Variant, Variant]], metric: str) -> list[Finding]:
    """The finding of each pair, whose first has the higher mean; p is corrected by Holm over the pairs."""
    gaps = [(pair, difference(pair[1].by_seed(metric), pair[0].by_seed(metric))) for pair in pairs]
    corrected = iter(holm([gap.p for _, gap in gaps if gap.p is not None]))
    return [Finding(*pair, gap, None if gap.p is None else next(corrected)) for pair, gap in gaps]


def difference_table(peers: Peers) -> Table | None:
    """A row for each two finished variants; None where there are not two."""
    found = compare(compared(peers), peers.score)
    if not found:
        return None
    rows = [
        [
            words(f"{each.higher.name} - {each.lower.name}"),
            number(each.gap.mean, "+.2f"),
            interval(each.gap.low, each.gap.high, "+.2f"),
            number(each.gap.p, ".3g"),
            number(each.p, ".3g"),
            words(each.gap.method),
            words(", ".join(each.differing)),
        ]
        for each in found
    ]
    what = heading(peers.label)
    headings = ["variants", what, f"{peers.label.text} 95 % interval", "p", "p corrected", "method", "differ in"]
    tests = sum(each.p is not None for each in found)
    notes = [difference_note(peers, tests), *left_out(peers), *in_words(peers, found)]
    title = peers.titled(f"Differences in {what}")
    return Table(peers.file("differences"), title, headings, rows, notes, folded=("method", "differ in"))


def compared(peers: Peers) -> list[tuple[Variant, Variant]]:
    """Every two finished variants; where they are many, each with the reference."""
    pairs = [*combinations(peers.finished, 2)]
    if len(peers.finished) <= PAIRWISE:
        return pairs
    return [pair for pair in pairs if peers.reference in pair]


def difference_note(peers: Peers, tests: int) -> Note:
    """Says how the differences were taken."""
    whom = "" if len(peers.finished) <= PAIRWISE else f" Each variant is compared with {peers.reference.name}."
    correction = (
        f"p corrected is Holm's for the {tests} comparisons of this table; the intervals are 95 % each, not corrected."
        if tests > 1
        else "One comparison or none was tested, so nothing is corrected."
    )
    return Note(
        "Two variants are paired over the seeds that both have, where these are two or more: Student's t on the "
        f"differences of the pairs; else Welch's t. p is two-sided.{whom} {correction} A pair that differs in more "
        "than the normalizer compares all of that."
    )


def left_out(peers: Peers) -> list[Note]:
    """The variants that are not compared, if there are such."""
    names = [variant.name for variant in peers.variants if variant not in peers.finished]
    return [Note(f"Not compared, because unfinished: {'; '.join(names)}.")] if names else []


def in_words(peers: Peers, found: Sequence[Finding]) -> list[Note]:
    """The findings in sentences."""
    what, unit, sentences = peers.label.text, peers.label.unit, []
    for each in [each for each in found if each.is_shown]:
        gap = each.gap
        assert gap.low is not None and gap.high is not None
        way, ends = ("higher", (gap.low, gap.high)) if gap.mean > 0 else ("lower", (-gap.high, -gap.low))
        amount = f"{abs(gap.mean):.2f} {unit}".strip()
        sentences.append(
            Note(
                f"{what} of {each.higher.name} is {way} than that of {each.lower.name} by {amount} (95 % interval "
                f"{ends[0]:.2f} to {ends[1]:.2f}, {gap.method}; corrected p = {each.p:.2g})."
            )
        )
    if undecided := len(found) - len(sentences):
        pairs_in_words = "1 pair differs" if undecided == 1 else f"{undecided} pairs differ"
        sentences.append(Note(f"Whether {pairs_in_words} in {what} is not shown by these runs."))
    return sentences


def cost_table(peers: Peers) -> Table:
    """Tables what each variant costs, and what that and its score are relative to the reference."""
    reference, label = peers.reference, peers.label
    rows = []
    for variant in peers.variants:
        s, base = variant.summary, reference.summary
        rows.append(
            [
                words(variant.name),
                number(s.params),
                number(s.gmacs, ".4g"),
                number(s.norm_gmacs, ".3g"),
                mean(variant.speed, ".0f"),
                number(gain(variant, reference), "+.2f"),
                number(percent(s.params, base.params), "+.2f"),
                number(percent(variant.gmacs, reference.gmacs), "+.2f"),
                *faster(variant, reference),
                words(variant.hardware),
            ]
        )
    headings = ["variant", "parameters", "GMACs", "+ normalizers", "images/s", f"± {heading(label)}"]
    headings += ["± parameters %", "± GMACs %", "± images/s %", "± images/s % 95 % interval", "hardware"]
    notes = [
        Note(
            f"The columns with ± are relative to {reference.name}: so much {label.text} for so much compute. GMACs: "
            "convolutions and linear layers, one image in evaluation, 1 MAC = 2 FLOPs; what the normalizers add stands "
            "beside them and is counted in ± GMACs. Images/s are of training, in the last epoch, over all ranks, and "
            "compared on the same hardware only: the ratio of the geometric means, its interval by Student's t on the "
            "logarithms, paired over seeds or by Welch, as scores are. One that contains no difference, or that too "
            f"few runs give, is {NOT_SHOWN}; runs that others shared the machine with vary by that too."
        )
    ]
    title = peers.titled("Parameters, GMACs and speed")
    return Table(peers.file("cost"), title, headings, rows, notes, folded=("hardware", "parameters", "GMACs"))


def gain(variant: Variant, reference: Variant) -> float | None:
    """The difference of two finished variants' scores."""
    if not (variant.is_finished and reference.is_finished and variant.score and reference.score):
        return None
    metric = variant.summary.score
    return difference(reference.by_seed(metric), variant.by_seed(metric)).mean


def faster(variant: Variant, reference: Variant) -> list[Cell]:
    """How much faster a variant trains than the reference on the same hardware, %, and the 95 % interval of that."""
    base, own = reference.speed_by_seed, variant.speed_by_seed
    if variant is reference or variant.hardware != reference.hardware or not (base and own):
        return [number(None), interval(None, None)]
    logs = [{seed: math.log(speed) for seed, speed in speeds.items()} for speeds in (base, own)]
    gap = difference(*logs)
    ratio, low, high = (None if log is None else 100 * math.expm1(log) for log in (gap.mean, gap.low, gap.high))
    found = interval(low, high, "+.1f")
    if low is None or high is None:
        found = Cell(NOT_SHOWN, found.values)
    elif low <= 0 <= high:
        found = Cell(f"{found.text}: {NOT_SHOWN}", found.values)
    return [number(ratio, "+.1f"), found]


def percent(value: float | None, of: float | None) -> float | None:
    """Computes how much larger a value is than another, in %."""
    return 100 * (value / of - 1) if value is not None and of else None
