"""EN's ratios as runs logged them, evaluation by evaluation: over the layers, and over training."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from en.reports.charts import Chart, Look, chart_picture
from en.reports.curves import line_of
from en.reports.figures import Picture
from en.reports.ratios.figures import LOOKS, by_names
from en.reports.ratios.tables import takes_part
from en.reports.variants import Peers, Variant, summary_of
from en.runs.ratios import EpochRatios, read_epochs

MOST_VARIANTS = 8  # with pictures
DASH = {"bn": "-", "in": "--", "ln": ":", "gn": "-."}
BySeed = Mapping[int, Sequence[EpochRatios]]


def logged_pictures(every: Sequence[Peers]) -> list[Picture]:
    """Two pictures for each of the first variants whose runs logged ratios."""
    logged = [(variant, found) for peers in every for variant in peers.variants if (found := read_logged(variant))]
    drawn = []
    for at, (variant, found) in enumerate(logged[:MOST_VARIANTS], 1):
        end = f"_{at}" if len(logged) > 1 else ""
        drawn += [depth_picture(variant, found, f"ratios_by_layer{end}")]
        drawn += [course_picture(variant, found, f"ratios_by_epoch{end}")]
    return drawn


def read_logged(variant: Variant) -> dict[int, list[EpochRatios]]:
    """The ratios of the counted runs that logged some, by seed, up to what the summary tells of."""
    found = {}
    for seed, run in variant.counted.items():
        done = summary_of(run).epochs_done
        if own := [row for row in read_epochs(run.path) if row.epoch <= done and row.ratios]:
            found[seed] = own
    return found


def layers_of(found: BySeed) -> list[str]:
    """The layers that ran in the last evaluation, in the order of the network's modules."""
    last = (layer for rows in found.values() for layer in rows[-1].ratios.items())
    ran = (name for name, means in last if any(map(takes_part, means.values())))
    return list(dict.fromkeys(ran))


def kinds_of(found: BySeed) -> list[str]:
    """The normalizers that layers have."""
    kinds = {kind for rows in found.values() for own in rows[-1].ratios.values() for kind in own}
    return sorted(kinds, key=lambda kind: [*LOOKS].index(kind) if kind in LOOKS else len(LOOKS))


def depth_picture(variant: Variant, found: BySeed, name: str) -> Picture:
    """The mean ratio of each normalizer by layer after the last evaluation; what a layer leaves out is a gap."""
    layers = layers_of(found)
    places: dict[float, str] = dict(enumerate(layers, 1))
    lines, kinds = [], kinds_of(found)
    for kind in kinds:
        shares: dict[int, dict[float, float]] = {
            seed: {place: share(rows[-1], layer, kind) for place, layer in places.items()}
            for seed, rows in found.items()
        }
        lines.append(line_of(kind, shares))
    lines = [each for each in lines if each.points]
    without = {place: [kind for kind in kinds if leave_out(found, layer, kind)] for place, layer in places.items()}
    absent = {f"{names} left out": at for names, at in by_names(without).items() if names}
    chart = Chart(lines, [look(each.name) for each in lines], "layer", "mean ratio", names=places, absent=absent)
    title = f"Mean ratio of each normalizer by layer: {variant.name}"
    said = [f"{each.name} {fmean(point.mean for point in each.points.values()):.3g} on average" for each in lines]
    said += [f"{each} in {len(where)} of {len(layers)} layers" for each, where in absent.items()]
    alt = f"{title}, after the last evaluation, mean over seeds, shaded by one standard deviation. {'; '.join(said)}."
    return chart_picture(chart, name, title, alt)


def look(kind: str) -> Look:
    colour, marker = LOOKS.get(kind, next(iter(LOOKS.values())))
    return Look(colour, DASH.get(kind, "-"), marker)


def share(row: EpochRatios, layer: str, kind: str) -> float:
    """A mean ratio; not a number where the layer leaves the normalizer out or has none of it."""
    found = row.ratios.get(layer, {}).get(kind, 0.0)
    return found if takes_part(found) else float("nan")


def leave_out(found: BySeed, layer: str, kind: str) -> bool:
    """Tells whether a layer has a normalizer and no run mixes it there."""
    means = [rows[-1].ratios[layer][kind] for rows in found.values() if kind in rows[-1].ratios.get(layer, {})]
    return bool(means) and not any(map(takes_part, means))


def course_picture(variant: Variant, found: BySeed, name: str) -> Picture:
    """The mean ratio of each normalizer over training: over the layers in which it takes part."""
    layers = layers_of(found)
    lines = []
    for kind in kinds_of(found):
        mixed = [layer for layer in layers if not leave_out(found, layer, kind)]
        courses: dict[int, dict[float, float]] = {
            seed: {row.epoch: mean_share(row, mixed, kind) for row in rows} for seed, rows in found.items()
        }
        of_some = f", in {len(mixed)} of {len(layers)} layers" if len(mixed) < len(layers) else ""
        lines.append((kind, line_of(f"{kind}{of_some}", courses)))
    lines = [(kind, each) for kind, each in lines if each.points]
    chart = Chart([each for _, each in lines], [look(kind) for kind, _ in lines], "epoch", "mean ratio")
    title = f"Mean ratio of each normalizer over training: {variant.name}"
    ends = [f"{each.name}: {points[0].mean:.3g} to {points[-1].mean:.3g}" for _, each in lines
            if (points := [*each.points.values()])]  # fmt: skip
    alt = f"{title}, over the layers that mix it, mean over seeds, from the first evaluation to the last. "
    return chart_picture(chart, name, title, f"{alt}{'; '.join(ends)}.")


def mean_share(row: EpochRatios, layers: Sequence[str], kind: str) -> float:
    """The mean over layers of a normalizer's ratio where it takes part; not a number where it does in none."""
    shares = [found for layer in layers if takes_part(found := row.ratios.get(layer, {}).get(kind, 0.0))]
    return fmean(shares) if shares else float("nan")
