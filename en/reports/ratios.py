"""What scripts/ratios.py left in the folder `ratios` of a run, as part of a report."""

import base64
import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError, field_validator

from en.config.section import Section, first_problem
from en.errors import warn
from en.norm.statistics import NAMES
from en.reports.runs import Run
from en.reports.statistics import Estimate
from en.reports.tables import Cell, Note, Table, mean, words
from en.runs.ratios import RatioShare

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


class LayerShare(Section):
    """One normalizer's ratio in one layer, by the text of a table; sd is None of one sample."""

    model_config = ConfigDict(extra="ignore", strict=False)

    layer: str
    normalizer: str
    mean: RatioShare
    sd: RatioShare | None

    @field_validator("sd", mode="before")
    @classmethod
    def _none(cls, found: object) -> object:
        return None if found == "" else found

    @field_validator("normalizer")
    @classmethod
    def _known(cls, found: str) -> str:
        if found not in NAMES:
            raise ValueError(f"expected one of {', '.join(NAMES)}")
        return found


def ratio_tables(runs: Iterable[Run]) -> list[Table]:
    """For each run whose ratios were looked at, the mean of each normalizer's by layer, bottom to top."""
    found = [(run, path) for run in runs if is_small(path := run.path / FOLDER / LAYERS)]
    tables = []
    for at, (run, path) in enumerate(found, 1):
        try:
            headings, rows = by_layer(path)
        except (OSError, ValueError, csv.Error) as error:
            warn(f"{path}: not a table of ratios ({error}): left out")
            continue
        note = Note(f"Mean ± sample standard deviation over the samples; more is in {path.parent}.")
        tables.append(Table(f"ratios_{at}", f"Mean ratios of {run.path} by layer", headings, rows, [note]))
    return tables


def by_layer(path: Path) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows: a row for each layer, a column for each normalizer. Raises ValueError that names the line."""
    layers: dict[str, dict[str, Cell]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            try:
                found = read_share(row)
                if found.normalizer in layers.setdefault(found.layer, {}):
                    raise ValueError(f"{found.layer}, {found.normalizer}: expected once")
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
            layers[found.layer][found.normalizer] = mean(Estimate(found.mean, 1, found.sd), ".3f")
    kinds = list(dict.fromkeys(kind for cells in layers.values() for kind in cells))
    rows = [[words(layer), *(cells.get(kind, mean(None)) for kind in kinds)] for layer, cells in layers.items()]
    return ["layer", *kinds], rows


def read_share(row: Mapping[str | None, object]) -> LayerShare:
    """Reads a row of the table. Raises ValueError that names the column, its value and what was expected."""
    if None in row or None in row.values():
        raise ValueError("expected as many fields as headings")
    try:
        return LayerShare.model_validate(row)
    except ValidationError as error:
        raise ValueError(first_problem(error, str)) from error


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
