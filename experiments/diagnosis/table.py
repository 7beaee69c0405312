"""What the normalizers do, in the terminal."""

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from experiments.diagnosis.gains import Gain

COLUMNS = ("branch", "flat cells", "ratio", "forward", "backward", "largest")


def show_gains(gains: Mapping[str, Sequence[Gain]], by_layer: bool) -> None:
    """Prints gains within the terminal's width: of every layer, bottom to top, or means over layers of one map size."""
    if by_layer:
        show(["layer", "pixels"], [([layer, str(found[0].pixels)], found) for layer, found in gains.items()])
        return
    sizes = sorted({found[0].pixels for found in gains.values()}, reverse=True)
    rows = []
    for size in sizes:
        layers = [found for found in gains.values() if found[0].pixels == size]
        rows.append(([str(size), str(len(layers))], [mean_gain(same) for same in zip(*layers, strict=True)]))
    show(["pixels", "layers"], rows)


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """Summarizes one branch in several layers: means, geometric of what multiplies, and the largest scale."""
    return Gain(
        branch=gains[0].branch,
        pixels=gains[0].pixels,
        near_constant=statistics.fmean(gain.near_constant for gain in gains),
        flat=statistics.fmean(gain.flat for gain in gains),
        ratio=statistics.fmean(gain.ratio for gain in gains),
        forward=geometric([gain.forward for gain in gains]),
        backward=geometric([gain.backward for gain in gains]),
        largest=max(gain.largest for gain in gains),
    )


def geometric(values: Sequence[float]) -> float:
    """The geometric mean; 0 where one value is, or is not a number because no gradient came."""
    return statistics.geometric_mean(values) if all(value > 0 for value in values) else 0.0


def show(names: list[str], rows: Sequence[tuple[list[str], Sequence[Gain]]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in (*names, *COLUMNS):
        table.add_column(heading, justify="left" if heading in ("layer", "branch") else "right", overflow="fold")
    for labels, gains in rows:
        for gain in gains:
            figures = [f"{gain.ratio:.3f}", *(f"{part:.3g}" for part in (gain.forward, gain.backward, gain.largest))]
            first = labels if gain is gains[0] else [""] * len(labels)
            table.add_row(*first, gain.branch, f"{100 * gain.flat:.1f} %", *figures)
    Console(highlight=False, markup=False).print(table)
