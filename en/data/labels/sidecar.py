"""The file of labels beside a set: name, clean and given class of each training sample, under a line of origin."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from en import durable
from en.data.order import Ints
from en.errors import UserError, listed, shown

FOLDER, END = "labels", ".csv"
COLUMNS = ("name", "clean", "given")
MOST_PAIRS = 1000  # of classes that provenance.json has counts of: all of up to 31 classes
MADE_BY = "expected a file that en-labels has written"


@dataclass(frozen=True)
class Sidecar:
    """Labels given to the training samples of a set, beside those that are taken to be right.

    Attributes:
        names: of the samples.
        classes: names in the order of the class numbers.
        clean, given: class numbers, (n,).
        origin: how they came about: rule, rate and seed, or file and column.
    """

    names: Sequence[str]
    classes: Sequence[str]
    clean: Ints
    given: Ints
    origin: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def counts(self) -> Ints:
        """Counts the samples of a class, by row, that are given one, by column: (K, K)."""
        size = len(self.classes)
        counts: Ints = np.bincount(self.clean * size + self.given, minlength=size**2).reshape(size, size)
        return counts

    @property
    def wrong(self) -> int:
        """Counts the samples that are given another class than their own."""
        return int((self.clean != self.given).sum())

    @property
    def rows(self) -> str:
        """The samples as the file has them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        named = ([self.classes[number] for number in numbers] for numbers in (self.clean, self.given))
        writer.writerows(zip(self.names, *named, strict=True))
        return text.getvalue()

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of names, classes and labels, in whatever order, and of how they came about."""
        return digest_of(self.origin, self.rows)

    def facts(self) -> dict[str, Any]:
        """Returns what provenance.json says of them; of the counts those of MOST_PAIRS pairs of classes, the largest.

        Each is a list: the clean class, the given one, and how many samples.
        """
        rows, columns = np.nonzero(self.counts)
        largest = sorted(zip((-self.counts[rows, columns]).tolist(), rows.tolist(), columns.tolist(), strict=True))
        pairs = [[self.classes[own], self.classes[other], -count] for count, own, other in largest[:MOST_PAIRS]]
        numbers = {"samples": len(self.names), "wrong": self.wrong, "classes": len(self.classes)}
        return {"origin": dict(self.origin), "digest": self.digest, **numbers, "counts": pairs}


def digest_of(origin: Mapping[str, Any], rows: str) -> str:
    lines = sorted(rows.split("\n"))
    return hashlib.sha256("\n".join([json.dumps(dict(origin), sort_keys=True), *lines]).encode()).hexdigest()


def digest_in(path: Path) -> str:
    """Reads the digest that a file of labels says it has. Raises UserError for a file of another form."""
    return str(origin_of(path, whole(path)[0]).get("digest"))


def sidecar_path(root: Path, labels: str) -> Path:
    """The file of data.labels: a path that ends in .csv, or a name of a file in the set's folder `labels`."""
    return Path(labels) if labels.endswith(END) else root / FOLDER / f"{labels}{END}"


def write_sidecar(sidecar: Sidecar, path: Path) -> None:
    """Writes the file whole or not at all. Raises OSError."""
    head = json.dumps({**sidecar.origin, "digest": sidecar.digest}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(path, f"# {head}\n{sidecar.rows}".encode())


def read_sidecar(path: Path, classes: Sequence[str]) -> Sidecar:
    """Reads a file of labels.

    Args:
        classes: of the set that they are of, in the order of their numbers.
    Raises: UserError for a file that is missing, of another form, changed since it was written, or of other classes.
    """
    head, rows = whole(path)
    origin = origin_of(path, head)
    digest = origin.pop("digest", None)
    if digest != digest_of(origin, rows):
        raise UserError(f"{path}: digest {shown(digest)}: expected that of its lines: changed since en-labels wrote it")
    number = {name: index for index, name in enumerate(classes)}
    table = list(csv.reader(io.StringIO(rows, newline="")))
    if not table or tuple(table[0]) != COLUMNS or any(len(row) != len(COLUMNS) for row in table):
        raise UserError(f"{path}: {MADE_BY}, of columns {', '.join(COLUMNS)}")
    names, *labels = zip(*table[1:], strict=True) if table[1:] else ((), (), ())
    if unknown := sorted({name for column in labels for name in column} - {*classes}):
        raise UserError(f"{path}: class {listed(unknown, 3)}: expected the {len(classes)} classes of the set")
    clean, given = (np.array([number[name] for name in column], np.int64) for column in labels)
    return Sidecar(names, classes, clean, given, origin)


def whole(path: Path) -> tuple[str, str]:
    """The first line of a file, and the rest."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        there = sorted(each.stem for each in path.parent.glob(f"*{END}")) if path.parent.name == FOLDER else []
        beside = f"; there: {listed(there)}" if there else ""
        raise UserError(f"{path}: {error.strerror}: {MADE_BY}{beside}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8: {MADE_BY}") from error
    head, _, rows = text.partition("\n")
    return head, rows


def origin_of(path: Path, head: str) -> dict[str, Any]:
    """Reads the first line."""
    try:
        origin = json.loads(head.removeprefix("# ")) if head.startswith("# {") else None
    except (ValueError, RecursionError):
        origin = None
    if not isinstance(origin, dict):
        raise UserError(f"{path}: first line {shown(head)}: {MADE_BY}")
    return origin


def of_samples(sidecar: Sidecar, names: Sequence[str], where: Path) -> Sidecar:
    """Puts the labels in the order of a set's samples.

    Args:
        names: of the set's samples.
        where: the file of the labels, for messages.
    Raises: UserError unless they are those of these samples, each once.
    """
    place = {name: row for row, name in enumerate(sidecar.names)}
    if len(place) < len(sidecar.names):
        raise UserError(f"{where}: {len(sidecar.names) - len(place)} names twice: expected each once")
    expected = f"expected those of the {len(names)} training samples"
    if missing := [name for name in names if name not in place]:
        raise UserError(f"{where}: no label of {listed(missing, 1)}: {expected}")
    if len(place) > len(names):
        known = {*names}
        other = [name for name in place if name not in known]
        raise UserError(f"{where}: labels of {listed(other, 1)}, which the set has not: {expected}")
    order = np.array([place[name] for name in names], np.int64)
    return Sidecar(names, sidecar.classes, sidecar.clean[order], sidecar.given[order], sidecar.origin)
