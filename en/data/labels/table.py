"""Labels from a table of others, such as human ones: a CSV file, or one packed by xz."""

import csv
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from en.data.order import Ints
from en.errors import UserError, listed, shown

CLEAN = "clean"
SPLIT = "train/"  # names may begin with it, or not
Table = Mapping[str, Mapping[str, str]]
"""Rows by the sample's name, each by column."""


def read_table(path: Path) -> tuple[list[str], Table]:
    """Reads a table whose first line names the columns and whose first column names the samples.

    Returns: the columns, and the rows. Raises: UserError.
    """
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            columns = next(lines, [])
            rows: dict[str, Mapping[str, str]] = {}
            for line in filter(None, lines):
                name, where = line[0].removeprefix(SPLIT), f"--from {path}:{lines.line_num}"
                if len(line) != len(columns):
                    raise UserError(f"{where}: {len(line)} fields: expected {len(columns)}, as in the first line")
                if name in rows:
                    raise UserError(f"{where}: {shown(name)} twice: expected one line a sample")
                rows[name] = dict(zip(columns, line, strict=True))
    except OSError as error:
        raise UserError(f"--from {path}: {error.strerror or error}: expected a table of labels") from error
    except (ValueError, csv.Error, lzma.LZMAError, EOFError) as error:
        raise UserError(f"--from {path}: {error}: expected a CSV file of one line a sample, or one in .xz") from error
    if len({*columns}) < max(2, len(columns)):
        raise UserError(f"--from {path}: columns {listed(columns)}: expected names of two or more in the first line")
    return columns, rows


def labels_from(path: Path, column: str | None, names: Sequence[str], classes: Sequence[str], clean: Ints) -> Ints:
    """Takes the labels of a set's samples from a table, by class names; what else is in it is left.

    Args:
        column: of the labels; None: the only one beside the names.
        names, clean: of the set's samples, and their class numbers, which a column `clean` has to agree with.
    Returns: class numbers, (n,). Raises: UserError.
    """
    columns, rows = read_table(path)
    column = columns[1] if column is None and len(columns) == 2 else column
    if column not in columns[1:]:
        raise UserError(f"--column {shown(column)}: expected one of {path}: {listed(columns[1:], 20)}")
    found = [rows.get(name.removeprefix(SPLIT)) for name in names]
    if missing := [name for name, row in zip(names, found, strict=True) if row is None]:
        raise UserError(f"--from {path}: no line for {listed(missing, 1)}: expected the {len(names)} training samples")
    number = {name: index for index, name in enumerate(classes)}
    given = np.zeros(len(names), np.int64)
    for sample, row in enumerate(found):
        assert row is not None
        if row[column] not in number:
            where = f"--from {path}: {column}={shown(row[column])} of {names[sample]}"
            raise UserError(f"{where}: expected a class of the set: {listed(classes)}")
        own = classes[clean[sample]]
        if row.get(CLEAN, own) != own:
            where = f"--from {path}: {CLEAN}={shown(row[CLEAN])} of {names[sample]}"
            raise UserError(f"{where}: expected {own}, as in the set: the table is of another one")
        given[sample] = number[row[column]]
    return given


def read_pairs(path: Path) -> dict[str, str]:
    """Reads which classes are taken for which: a line `class,other` each. Raises UserError."""
    try:
        lines = [line for line in csv.reader(path.read_text(encoding="utf-8").splitlines()) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--pairs {path}: {error}: expected lines `class,other`") from error
    if not lines or any(len(line) != 2 for line in lines) or len({line[0] for line in lines}) < len(lines):
        raise UserError(f"--pairs {path}: expected lines `class,other`, one a class")
    return dict(lines)
