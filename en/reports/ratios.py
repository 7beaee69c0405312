"""What scripts/ratios.py left in the folder `ratios` of a run, as part of a report."""

import base64
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from en.errors import warn
from en.reports.runs import Run
from en.reports.statistics import Estimate
from en.reports.tables import Cell, Note, Table, mean, words

FOLDER = "ratios"
LAYERS = "layers.csv"
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
MAX_BYTES = 4_000_000  # of a file that becomes part of a page


@dataclass(frozen=True)
class RatioPicture:
    """A picture of a run's ratios, as part of a page.

    Attributes:
        title: the run and the file.
        alt: in words for those who do not see it: the text file of the same name, or the title.
        address: the picture itself, as a data URI.
    """

    title: str
    alt: str
    address: str


def ratio_tables(runs: Iterable[Run]) -> list[Table]:
    """For each run whose ratios were looked at, the mean of each normalizer's by layer, bottom to top."""
    found = [(run, path) for run in runs if is_small(path := run.path / FOLDER / LAYERS)]
    tables = []
    for at, (run, path) in enumerate(found, 1):
        try:
            headings, rows = by_layer(path)
        except (ValueError, KeyError, csv.Error) as error:
            warn(f"{path}: not a table of ratios ({error}): left out")
            continue
        note = Note(f"Mean ± sample standard deviation over the samples; more is in {path.parent}.")
        tables.append(Table(f"ratios_{at}", f"Mean ratios of {run.path} by layer", headings, rows, [note]))
    return tables


def by_layer(path: Path) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows: a row for each layer, a column for each normalizer."""
    layers: dict[str, dict[str, Cell]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, strict=True):
            ratio = Estimate(float(row["mean"]), 1, float(row["sd"]) if row["sd"] else None)
            layers.setdefault(row["layer"], {})[row["normalizer"]] = mean(ratio, ".3f")
    kinds = list(dict.fromkeys(kind for cells in layers.values() for kind in cells))
    rows = [[words(layer), *(cells.get(kind, mean(None)) for kind in kinds)] for layer, cells in layers.items()]
    return ["layer", *kinds], rows


def ratio_pictures(runs: Iterable[Run]) -> list[RatioPicture]:
    """The pictures in the runs' folders of ratios, those that a page can hold."""
    paths = [path for run in runs for path in sorted((run.path / FOLDER).glob("*")) if path.suffix in KINDS]
    return [ratio_picture(path) for path in paths if is_small(path)]


def ratio_picture(path: Path) -> RatioPicture:
    title = f"{path.parent.parent}: {path.stem.replace('_', ' ')}"
    told = path.with_suffix(".txt")
    alt = told.read_text(encoding="utf-8", errors="replace").strip() if is_small(told) else f"Ratios of {title}"
    content = base64.b64encode(path.read_bytes()).decode()
    return RatioPicture(title, alt, f"data:{KINDS[path.suffix]};base64,{content}")


def is_small(path: Path) -> bool:
    """Whether a file is there and can become part of a page."""
    return path.is_file() and path.stat().st_size <= MAX_BYTES
