"""Variants set against each other: differences of their scores, and what they cost."""

from collections.abc import Sequence
from itertools import combinations

from en.reports.statistics import Difference, difference, holm
from en.reports.tables import Note, Table, interval, mean, number, words
from en.reports.variants import Peers, Variant, heading, unlike

PAIRWISE = 8  # more variants are compared with one of them only
SIGNIFICANT = 0.05


def difference_table(peers: Peers) -> Table | None:
    """A row for each two finished variants; None where there are not two."""
    pairs = compared(peers)
    if not pairs:
        return None
    found = [difference(first.by_seed(peers.score), second.by_seed(peers.score)) for first, second in pairs]
    tests = [gap.p for gap in found if gap.p is not None]
    corrected = iter(holm(tests))
    ps = [next(corrected) if gap.p is not None else None for gap in found]
    rows = [
        [
            words(f"{second.name} - {first.name}"),
            number(gap.mean, "+.2f"),
            interval(gap.low, gap.high, "+.2f"),
            number(gap.p, ".3g"),
            number(p, ".3g"),
            words(gap.method),
            words(", ".join(unlike(second.facts, first.facts))),
        ]
        for (first, second), gap, p in zip(pairs, found, ps, strict=True)
    ]
    what = heading(peers.label)
    headings = ["variants", what, f"{peers.label.text} 95 % interval", "p", "p corrected", "method", "differ in"]
    notes = [difference_note(peers, len(tests)), *left_out(peers), *in_words(peers, pairs, found, ps)]
    return Table(peers.file("differences"), peers.titled(f"Differences in {what}"), headings, rows, notes)


def compared(peers: Peers) -> list[tuple[Variant, Variant]]:
    """Every two finished variants; where they are many, each with the reference."""
    finished = peers.finished
    if len(finished) <= PAIRWISE:
        return list(combinations(finished, 2))
    return [(peers.reference, variant) for variant in finished if variant is not peers.reference]


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


def in_words(
    peers: Peers,
    pairs: Sequence[tuple[Variant, Variant]],
    found: Sequence[Difference],
    ps: Sequence[float | None],
) -> list[Note]:
    """The findings in sentences."""
    what, unit, sentences, undecided = peers.label.text, peers.label.unit, [], 0
    for (first, second), gap, p in zip(pairs, found, ps, strict=True):
        if p is None or p >= SIGNIFICANT:
            undecided += 1
            continue
        assert gap.low is not None and gap.high is not None
        way, ends = ("higher", (gap.low, gap.high)) if gap.mean > 0 else ("lower", (-gap.high, -gap.low))
        amount = f"{abs(gap.mean):.2f} {unit}".strip()
        sentences.append(
            Note(
                f"{what} of {second.name} is {way} than that of {first.name} by {amount} (95 % interval {ends[0]:.2f} "
                f"to {ends[1]:.2f}, {gap.method}; corrected p = {p:.2g})."
            )
        )
    if undecided:
        pairs_in_words = "1 pair differs" if undecided == 1 else f"{undecided} pairs differ"
        sentences.append(Note(f"Whether {pairs_in_words} in {what} is not shown by these runs."))
    return sentences


def cost_table(peers: Peers) -> Table:
    """Tables what each variant costs, and what that and its score are relative to the reference."""
    reference, label = peers.reference, peers.label
    rows = []
    for variant in peers.variants:
        s, base = variant.summary, reference.summary
        same_hardware = variant.hardware == reference.hardware
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
                number(percent(speed(variant), speed(reference)) if same_hardware else None, "+.1f"),
                words(variant.hardware),
            ]
        )
    headings = ["variant", "parameters", "GMACs", "+ normalizers", "images/s", f"± {heading(label)}"]
    headings += ["± parameters %", "± GMACs %", "± images/s %", "hardware"]
    notes = [
        Note(
            f"The columns with ± are relative to {reference.name}: so much {label.text} for so much compute. GMACs: "
            "convolutions and linear layers, one image in evaluation, 1 MAC = 2 FLOPs; what the normalizers add stands "
            "beside them and is counted in ± GMACs. Images/s are of training, in the last epoch, over all ranks, and "
            "compared on the same hardware only."
        )
    ]
    return Table(peers.file("cost"), peers.titled("Parameters, GMACs and speed"), headings, rows, notes)


def gain(variant: Variant, reference: Variant) -> float | None:
    """The difference of two finished variants' scores."""
    if not (variant.is_finished and reference.is_finished and variant.score and reference.score):
        return None
    metric = variant.summary.score
    return difference(reference.by_seed(metric), variant.by_seed(metric)).mean


def speed(variant: Variant) -> float | None:
    return variant.speed.mean if variant.speed else None


def percent(value: float | None, of: float | None) -> float | None:
    """Computes how much larger a value is than another, in %."""
    return 100 * (value / of - 1) if value is not None and of else None
