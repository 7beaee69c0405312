"""What the normalizers do, in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from en.diagnosis.gains import Gain

HEADINGS = ("layer", "pixels", "branch", "flat cells", "ratio", "forward", "backward", "largest")


def show_gains(gains: Mapping[str, Sequence[Gain]]) -> None:
    """Prints the gains of every layer's branches, bottom to top, within the terminal's width."""
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("layer", "branch") else "right", overflow="fold")
    for layer, found in gains.items():
        for gain in found:
            first = gain is found[0]
            figures = [f"{gain.ratio:.3f}", *(f"{part:.3g}" for part in (gain.forward, gain.backward, gain.largest))]
            flat = f"{100 * gain.flat:.1f} %"
            table.add_row(layer if first else "", str(gain.pixels) if first else "", gain.branch, flat, *figures)
    Console(highlight=False, markup=False).print(table)
