"""Counts of an evaluation class by class, and pictures of a few samples: kept of the last and the best one."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError, model_validator

from en import durable
from en.config.section import Count, Section, first_problem
from en.data.order import Ints
from en.errors import UserError
from en.runs.summary import Epochs, Name

FOLDER = "evaluation"  # of a run
LAST, BEST = "last", "best"  # in it
FILE = "classes.json"
MOST_CELLS = 2**23  # of a table
MAX_BYTES = 64 * 2**20  # of FILE
SUFFIX = ".jpg"
Floats = NDArray[np.float64]


class Entries(Section):
    """A table of whole numbers by those that are not 0: row, column, number."""

    shape: tuple[Count, Count]
    entries: list[tuple[Count, Count, Count]]

    @model_validator(mode="after")
    def _inside(self) -> "Entries":
        rows, columns = self.shape
        if rows * columns > MOST_CELLS or not all(row < rows and column < columns for row, column, _ in self.entries):
            raise ValueError(f"expected entries of a table of {rows} x {columns}, at most {MOST_CELLS} cells")
        return self

    @staticmethod
    def of(table: Ints) -> "Entries":
        places = np.nonzero(table)
        entries = [*zip(*(part.tolist() for part in places), table[places].tolist(), strict=True)]
        return Entries(shape=(table.shape[0], table.shape[1]), entries=entries)

    @property
    def table(self) -> Ints:
        found = np.zeros(self.shape, np.int64)
        if self.entries:
            rows, columns, numbers = np.array(self.entries, np.int64).T
            found[rows, columns] = numbers
        return found


class Confused(NamedTuple):
    """Holds what is of one class and was taken for another: how much, and its share of the class, 0 to 1."""

    target: int
    predicted: int
    amount: int
    share: float


class ByClass(Section):
    """Holds what an evaluation counted, class by class.

    Attributes:
        epoch, step: as in the row of the log.
        task: its name. counted: what is counted: images, or pixels.
        classes: names in the order of their numbers.
        trained: training images of each class; None where they have no single class.
        counts: by the metric's name: see `Task.metrics`.
    """

    model_config = ConfigDict(extra="ignore")

    epoch: Epochs
    step: Count | None = None
    task: Name
    counted: Name
    classes: Annotated[list[str], Field(min_length=1)]
    trained: list[Count] | None = None
    counts: dict[Name, Entries]

    @model_validator(mode="after")
    def _of_these_classes(self) -> "ByClass":
        classes = len(self.classes)
        for name, columns in (("confusion", classes), ("hits", 2)):
            if name in self.counts and self.counts[name].shape != (classes, columns):
                raise ValueError(f"counts.{name}: expected a table of {classes} x {columns}")
        if self.trained is not None and len(self.trained) != classes:
            raise ValueError(f"trained: expected {classes} numbers, one for each class")
        return self

    @cached_property
    def confusion(self) -> Ints | None:
        """Class by predicted class; None where it was not counted."""
        return self.counts["confusion"].table if "confusion" in self.counts else None

    @cached_property
    def labelled(self) -> Ints:
        """Counts how much is of each class, (classes,)."""
        return self._hits[0]

    @cached_property
    def right(self) -> Ints:
        """Counts how much of that was recognized."""
        return self._hits[1]

    @cached_property
    def _hits(self) -> tuple[Ints, Ints]:
        if self.confusion is not None:
            return self.confusion.sum(1), self.confusion.diagonal()
        hits = self.counts["hits"].table if "hits" in self.counts else np.zeros((len(self.classes), 2), np.int64)
        return hits[:, 0], hits[:, 1]

    @property
    def says_something(self) -> bool:
        """Tells whether classes were counted."""
        return bool(self.labelled.any())

    @cached_property
    def accuracy(self) -> Floats:
        """The % of each class that was recognized; not a number for a class of which there is nothing."""
        return percent(self.right, self.labelled)

    @cached_property
    def overlap(self) -> Floats | None:
        """Intersection over union of each class, %; not a number for a class that is nowhere. None of images."""
        if self.confusion is None or self.counted == "images":
            return None
        return percent(self.right, self.labelled + self.confusion.sum(0) - self.right)

    @property
    def scores(self) -> Floats:
        """By what classes are judged: overlap where there is one, else accuracy."""
        return self.accuracy if self.overlap is None else self.overlap

    def confused(self, most: int) -> list[Confused]:
        """The pairs of classes that were confused most, those of most first, and of equal ones by their numbers."""
        if self.confusion is None:
            return []
        off = self.confusion.copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:most]
        places = zip(*(part.tolist() for part in np.unravel_index(order, off.shape)), strict=True)
        return [Confused(t, p, int(off[t, p]), float(off[t, p] / self.labelled[t])) for t, p in places if off[t, p]]


def percent(part: Ints, whole: Ints) -> Floats:
    """(classes,) each; not a number for a share of nothing."""
    found = np.full(len(whole), np.nan)
    np.divide(100.0 * part, whole, out=found, where=whole > 0)
    return found


def worst_first(scores: Floats) -> list[int]:
    """Class numbers from the lowest score to the highest, those without one last."""
    order: list[int] = np.argsort(scores, kind="stable").tolist()
    return order


@dataclass(frozen=True)
class Findings:
    """Holds what an evaluation leaves besides its row.

    Attributes:
        by_class: what was counted.
        pictures: JPEG files of some samples, by the numbers of these in the set.
    """

    by_class: ByClass
    pictures: dict[int, bytes]

    @property
    def is_empty(self) -> bool:
        return not (self.by_class.counts or self.pictures)

    def write(self, folder: Path) -> None:
        """Writes all of it in the place of what is there, FILE last, which says of what it is. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)
        names = {picture_name(sample): content for sample, content in self.pictures.items()}
        for path in folder.glob(f"*{SUFFIX}"):
            if path.name not in names:
                path.unlink()
        for name, content in names.items():
            durable.replace(folder / name, content)
        durable.replace(folder / FILE, self.by_class.model_dump_json(exclude_none=True).encode())


def picture_name(sample: int) -> str:
    return f"sample_{sample:06d}{SUFFIX}"


def read_by_class(folder: Path) -> ByClass | None:
    """Reads FILE; None where there is none. Raises UserError that names what is damaged in it."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: expected at most {MAX_BYTES} bytes")
        return ByClass.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = first_problem(error, str) if isinstance(error, ValidationError) else error.strerror
        raise UserError(f"{path}: {reason}") from error


def bring_best(home: Path, run: Path) -> None:
    """Copies what the best evaluation of another run left, FILE last, as a branch of that begins. Raises OSError."""
    of, to = home / FOLDER / BEST, run / FOLDER / BEST
    if (of / FILE).is_file():
        to.mkdir(parents=True, exist_ok=True)
        for path in sorted(of.iterdir(), key=lambda path: path.name == FILE):
            shutil.copyfile(path, to / path.name)


def drop_later(run: Path, epochs: float) -> None:
    """Removes what is of an evaluation later than so many epochs of a run, or damaged. Raises OSError."""
    for name in (LAST, BEST):
        folder = run / FOLDER / name
        try:
            found = read_by_class(folder)
        except UserError:
            found = None
        if found is None or found.epoch > epochs:
            shutil.rmtree(folder, ignore_errors=True)
