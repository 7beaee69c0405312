"""Scores by chance: what a network that looks at no image would have."""

from collections.abc import Sequence

from en.reports.tables import Note
from en.reports.variants import Peers, Variant, labels_of
from en.runs.summary import Summary

GUESSES = {"top1": 1, "macro_top1": 1, "top5": 5}  # classes that an image may be given, of equally likely ones


def chance(s: Summary, metric: str) -> float | None:
    """The expected score of a metric by chance, %; None where that is not known.

    Of images: a class drawn at random. Of pixels: the most frequent class of the evaluation set for all of them, whose
    IoU is its share and whose accuracy 1, that of all other classes being 0.
    """
    if metric in GUESSES:
        return 100 * min(1.0, GUESSES[metric] / s.classes) if s.classes else None
    labelled = [pixels or 0 for pixels in s.details.get("labelled", [])]
    if s.task != "segmentation" or not sum(labelled):
        return None
    share, classes = max(labelled) / sum(labelled), sum(pixels > 0 for pixels in labelled)
    return {"miou": 100 * share / classes, "macc": 100 / classes, "aacc": 100 * share}.get(metric)


def chance_notes(every: Sequence[Peers]) -> list[Note]:
    """A sentence for the variants of each data set and task whose chance is known."""
    return [Note(peers.titled(said), "Chance") for peers in every if (said := in_words(peers.variants[0]))]


def in_words(variant: Variant) -> str:
    s, labels = variant.summary, labels_of(variant.summary)
    found = {name: value for name in labels if (value := chance(s, name)) is not None}
    if not found:
        return ""
    how = "the most frequent class for every pixel" if s.task == "segmentation" else "a class drawn at random"
    scores = ", ".join(f"{labels[name].text} {value:.2f} {labels[name].unit}" for name, value in found.items())
    return f"{how} has {scores}."
