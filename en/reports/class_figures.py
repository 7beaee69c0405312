"""Figures of what runs counted class by class: scores, confusions, and the samples that evaluation drew."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from en.errors import in_one_line
from en.reports.charts import Chart, chart_picture
from en.reports.classes import MOST_NAMED, MOST_ROWS, MOST_VARIANTS, Counted, worst_classes
from en.reports.curves import line_of, look_of
from en.reports.figures import Photo, Picture, picture, style
from en.reports.variants import summary_of
from en.runs.by_class import FOLDER, LAST, SUFFIX, ByClass

MOST_DRAWN = 40  # classes of a drawn confusion
MAX_BYTES = 1_000_000  # of a sample's picture


def score_pictures(found: Sequence[Counted]) -> list[Picture]:
    """The scores of each class by variant, those of the worst classes first, where a page shows all of them."""
    found, classes = found[:MOST_VARIANTS], found[0].first.classes
    if not 1 < len(classes) <= MOST_ROWS:
        return []
    peers, what, look = found[0].peers, f"{found[0].judged_by} %", look_of(found[0].peers)
    order = worst_classes(found)
    names: dict[float, str] = {place: classes[n] for place, n in enumerate(order, 1)}
    lines = [line_of(each.variant.name, by_place(each, order)) for each in found]
    chart = Chart(lines, [look[line.name] for line in lines], "class, the worst first", what, names=names)
    title = peers.titled(f"{what[:1].upper()}{what[1:]} of each class")
    ends = [names[place] for place in (1, len(names))]
    alt = f"{title}, mean over seeds, shaded by one standard deviation, from {ends[0]} to {ends[1]}."
    return [chart_picture(chart, peers.file("scores_by_class"), title, alt)]


def by_place(each: Counted, order: Sequence[int]) -> dict[int, dict[float, float]]:
    """The classes' scores of each run, by its seed and the place of the class in an order."""
    return {
        summary_of(run).seed: {place: float(own.scores[n]) for place, n in enumerate(order, 1)}
        for run, own in each.runs
    }


def confusion_pictures(found: Sequence[Counted]) -> list[Picture]:
    """The confusion of each variant, where classes are few enough to be seen."""
    if len(found[0].first.classes) > MOST_DRAWN:
        return []
    drawn = []
    for at, each in enumerate(found[:MOST_VARIANTS], 1):
        pooled = each.pooled()
        if pooled is not None:
            drawn.append(confusion_picture(pooled, each, f"{each.peers.file('confusion')}_{at}"))
    return drawn


def confusion_picture(pooled: ByClass, each: Counted, name: str) -> Picture:
    """Draws the share of each class, a row, that was taken for which class, a column."""
    assert pooled.confusion is not None
    classes, shares = [in_one_line(text)[:24] for text in pooled.classes], pooled.confusion.astype(np.float64)
    whole = shares.sum(1, keepdims=True)
    shares = np.divide(100 * shares, whole, out=np.full_like(shares, np.nan), where=whole > 0)
    side = 1.5 + 0.24 * len(classes)
    with style({"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(max(4.0, side + 0.8), max(3.2, side)), layout="constrained")
        axes = figure.add_subplot()
        seen = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        axes.set_xticks(range(len(classes)), [f" {text}" for text in classes], rotation=90)
        axes.set_yticks(range(len(classes)), [f" {text}" for text in classes])
        axes.set_xlabel("was taken for (predicted)")
        axes.set_ylabel("is (labelled)")
        figure.colorbar(seen, ax=axes, label=f"% of the class's {pooled.counted}", shrink=0.8)
        title = each.peers.titled(f"Confusion of {each.variant.name}")
        pairs = [f"{classes[pair.target]} for {classes[pair.predicted]}, {100 * pair.share:.1f} %"
                 for pair in pooled.confused(MOST_NAMED)]  # fmt: skip
        said = f"Most {pooled.counted} were taken: {'; '.join(pairs)} of the class." if pairs else "None is confused."
        return picture(figure, name, title, f"{title}: rows are classes, columns what they were taken for. {said}")


def samples(found: Sequence[Counted]) -> list[Photo]:
    """The pictures that the first run of each variant drew of samples in its last evaluation."""
    photos = []
    for at, each in enumerate(found[:MOST_VARIANTS], 1):
        run, said = each.runs[0]
        paths = sorted((run.path / FOLDER / LAST).glob(f"sample_*{SUFFIX}"))
        for path in [path for path in paths if path.stat().st_size <= MAX_BYTES]:
            sample = path.stem.removeprefix("sample_").lstrip("0") or "0"
            title = f"{each.variant.name}, {run.path} after epoch {said.epoch:g}: sample {sample} of the evaluation set"
            alt = f"{title}: image, truth, prediction, and wrong pixels in pink on grey; striped is what does not count"
            file = f"{each.peers.file('sample')}_{at}_{sample}{SUFFIX}"
            photos.append(Photo(title, alt, path.read_bytes(), "image/jpeg", file, is_wide=True))
    return photos
