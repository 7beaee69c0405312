"""Writes what an evaluation counted class by class in Markdown, as TensorBoard shows it."""

from collections.abc import Sequence

import numpy as np

from en.errors import in_one_line
from en.runs.by_class import ByClass, percent, worst_first

MOST_ROWS = 255  # of a table of classes
MOST_CONFUSED = 20


def texts(found: ByClass) -> dict[str, str]:
    """By their tags; none where no classes were counted."""
    if not found.says_something:
        return {}
    return {"val/classes": class_lines(found), "val/confused": confused_lines(found)}


def class_lines(found: ByClass) -> str:
    """A table of the classes in Markdown, the worst first."""
    overlap, share = found.overlap, percent(found.labelled, np.full(len(found.labelled), found.labelled.sum()))
    headings = ["class", *([] if overlap is None else ["IoU %"]), "accuracy %", found.counted, "share %"]
    rows = [
        [found.classes[n], *([] if overlap is None else [in_percent(overlap[n])]), in_percent(found.accuracy[n]),
         f"{found.labelled[n]:,}", in_percent(share[n])]
        for n in worst_first(found.scores)[:MOST_ROWS]
    ]  # fmt: skip
    scores = found.scores[~np.isnan(found.scores)]
    mean = (
        f"mean of {len(scores)} of {len(found.classes)} classes: {in_percent(scores.mean())} %" if len(scores) else ""
    )
    return "\n".join([*markdown(headings, rows), "", mean])


def confused_lines(found: ByClass) -> str:
    """A table of what was confused most, in Markdown."""
    rows = [
        [found.classes[each.target], found.classes[each.predicted], f"{each.amount:,}", in_percent(100 * each.share)]
        for each in found.confused(MOST_CONFUSED)
    ]
    return "\n".join(markdown(["is", "was taken for", found.counted, "% of the class"], rows))


def in_percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[in_one_line(text).replace("|", "&#124;") for text in row] for row in (headings, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(headings)}", *lines[1:]]
