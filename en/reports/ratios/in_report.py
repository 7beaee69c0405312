"""What scripts/ratios.py left in the folder `ratios` of a run, as part of a report."""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError, field_validator

from en.config.section import Section, first_problem
from en.errors import warn
from en.norm.statistics import NAMES
from en.reports.figures import Photo
from en.reports.ratios.files import FACTS, read_facts
from en.reports.ratios.tables import takes_part
from en.reports.runs import Run
from en.reports.statistics import Estimate
from en.reports.tables import Cell, Note, Table, mean, words
from en.runs import checkpoint
from en.runs.position import Position
from en.runs.ratios import RatioShare

FOLDER = "ratios"
LAYERS = "layers.csv"
LAST, BEST = "last.pt", "best.pt"
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
NAMED = re.compile(r"[\w-]+\.(?:svg|png)", re.ASCII)  # what may be a file of the report
MAX_BYTES = 4_000_000  # of a file that becomes part of a page
LEFT_OUT = Cell("left out", {"": None, "sd": None})  # where min_pixels leaves a normalizer out
AGAIN = "left out; scripts/ratios.py takes them anew"


@dataclass(frozen=True)
class RunRatios:
    """The ratios of a run as it is now.

    Attributes:
        folder: of their files.
        run: its folder, and the epoch that they are of, in words.
        images: that they are of, in words.
    """

    folder: Path
    run: str
    images: str


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


def find_ratios(runs: Iterable[Run]) -> list[RunRatios]:
    """Finds the ratios of the runs as they are now; those of another state of a run are left out with a warning."""
    found = []
    for run in runs:
        folder = run.path / FOLDER
        if not any(path.suffix in KINDS or path.name in (LAYERS, FACTS) for path in folder.glob("*")):
            continue
        facts = read_facts(folder)
        if not facts.keys() >= {"checkpoint", "sha256", "trained to", "images", "split", "data"}:
            warn(f"{folder / FACTS}: expected it to say which checkpoint the ratios are of: {AGAIN}")
            continue
        name = BEST if Path(facts["checkpoint"]).name == BEST else LAST
        epoch = facts["trained to"]
        if is_now(run, name, epoch, facts["sha256"]):
            when = f"{epoch} ({BEST})" if name == BEST else epoch
            images = f"the {facts['images']} images of {facts['split']} of {facts['data']}"
            found.append(RunRatios(folder, f"{run.path} after {when}", images))
        else:
            those = f"ratios after {epoch}, of the checkpoint {facts['sha256'][:12]}"
            warn(f"{folder}: {those}: expected those of {name} as it is now: {AGAIN}")
    return found


def is_now(run: Run, name: str, epoch: str, digest: str) -> bool:
    """Tells whether a run's last.pt or best.pt is the checkpoint of an epoch, in words, with a SHA-256.

    Where a run has been copied without its checkpoints, the epoch alone decides.
    """
    if run.summary is None:
        return False
    s = run.summary
    epochs, at = (s.best_epoch, s.best_at) if name == BEST else (s.epochs_done, s.done_at)
    now = at or Position(epoch=int(epochs))
    path = run.path / name
    return epoch == now.words() and (not path.is_file() or checkpoint.digest_of(path) == digest)


def ratio_tables(found: Iterable[RunRatios]) -> list[Table]:
    """Makes a table for each run: the mean of each normalizer's ratio by layer, bottom to top."""
    tables = []
    held = [(each, path) for each in found if is_small(path := each.folder / LAYERS)]
    for at, (each, path) in enumerate(held, 1):
        try:
            headings, rows = by_layer(path)
        except (OSError, ValueError, csv.Error) as error:
            warn(f"{path}: not a table of ratios ({error}): left out")
            continue
        note = Note(f"Mean ± sample standard deviation over {each.images}; more is in {each.folder}.")
        tables.append(Table(f"ratios_{at}", f"Mean ratios of {each.run} by layer", headings, rows, [note]))
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
            shown = mean(Estimate(found.mean, 1, found.sd), ".3f") if takes_part(found.mean) else LEFT_OUT
            layers[found.layer][found.normalizer] = shown
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


def ratio_pictures(found: Iterable[RunRatios]) -> list[Photo]:
    """Reads the pictures in the folders of ratios, those that a page can hold."""
    paths = [
        (each, path, f"ratios_{at}_{path.name}" if NAMED.fullmatch(path.name) else "")
        for at, each in enumerate(found, 1)
        for path in sorted(each.folder.glob("*"))
        if path.suffix in KINDS
    ]
    return [ratio_picture(*each) for each in paths if is_small(each[1])]


def ratio_picture(found: RunRatios, path: Path, file: str) -> Photo:
    """One of them, to be kept as `file`; its words are in the text file beside it, else it has its title alone."""
    title = f"{found.run}: {path.stem.replace('_', ' ')}"
    told = path.with_suffix(".txt")
    alt = told.read_text(encoding="utf-8", errors="replace").strip() if is_small(told) else f"Ratios of {title}"
    return Photo(title, alt, path.read_bytes(), KINDS[path.suffix], file)


def is_small(path: Path) -> bool:
    """Tells whether a file is there and can become part of a page."""
    return path.is_file() and path.stat().st_size <= MAX_BYTES
