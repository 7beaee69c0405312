"""Tables as data, and the forms that they are written in: Markdown, LaTeX and CSV."""

import csv as csv_format
import html
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from typing import NamedTuple

from en.errors import in_one_line
from en.reports.statistics import Estimate

Value = float | int | str | None
NOTHING = "-"
LEAST = 3  # runs whose mean has an interval that is worth a look
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: for people.
        values: for machines, by what is added to the column's heading; the first one sorts.
        strong: whether it is to be noticed.
    """

    text: str
    values: Mapping[str, Value]
    strong: bool = False

    @property
    def key(self) -> Value:
        """Returns what rows are sorted by."""
        return next(iter(self.values.values()))


class Note(NamedTuple):
    """A sentence under a table, with the words that it begins with, if they are to be noticed."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings.

    Attributes:
        name: of its files.
        title: what it shows, in a line.
        headings: no two alike.
        first: how many rows a page shows, where the files of the table hold more.
        folded: headings of columns that a page says once under the table where all rows agree.
    """

    name: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[Note] = field(default=())
    first: int | None = None
    folded: Collection[str] = ()

    @cached_property
    def on_page(self) -> "Table":
        """Returns what a page shows: the first rows, without columns of dashes alone and those that it says once."""
        empty = [at for at in range(len(self.headings)) if all(row[at].text in (NOTHING, "") for row in self.rows)]
        once = [at for at, heading in enumerate(self.headings) if heading in self.folded and self.agrees(at)]
        kept = [at for at in range(len(self.headings)) if at not in (*empty, *once)]
        said = "; ".join(f"{self.headings[at]} {self.rows[0][at].text}" for at in once if at not in empty)
        return replace(
            self,
            headings=[self.headings[at] for at in kept],
            rows=[[row[at] for at in kept] for row in self.rows[: self.first]],
            notes=[*([Note(f"{said}.", "In all rows")] if said else []), *self.notes],
            folded=(),
        )

    def agrees(self, column: int) -> bool:
        """Tells whether several rows show the same in a column."""
        return len(self.rows) > 1 and len({row[column].text for row in self.rows}) == 1

    def is_numeric(self, column: int) -> bool:
        """Tells whether a column holds numbers, and dashes at most beside them."""
        keys = [row[column].key for row in self.rows]
        return any(key is not None for key in keys) and not any(isinstance(key, str) for key in keys)

    @property
    def records(self) -> list[dict[str, Value]]:
        """The values of each row by heading and what is added to it, in full precision."""
        return [
            {
                f"{heading} {part}".strip(): value
                for heading, cell in zip(self.headings, row, strict=True)
                for part, value in cell.values.items()
            }
            for row in self.rows
        ]


def words(text: object, strong: bool = False) -> Cell:
    """A cell of text, in one line whatever it contains."""
    shown = in_one_line(str(text))
    return Cell(shown, {"": shown}, strong)


def number(value: float | None, form: str = ",") -> Cell:
    """A cell of one number, in Python's format; a dash where there is none."""
    return Cell(NOTHING if value is None else format(value, form), {"": value})


def mean(found: Estimate | None, form: str = ".2f") -> Cell:
    """Mean and sample standard deviation; the value alone where there is one, a dash where there is none."""
    if found is None:
        return Cell(NOTHING, {"": None, "sd": None})
    text = format(found.mean, form) + ("" if found.sd is None else f" ± {format(found.sd, form)}")
    return Cell(text, {"": found.mean, "sd": found.sd})


def interval(low: float | None, high: float | None, form: str = ".2f") -> Cell:
    text = NOTHING if low is None or high is None else f"{format(low, form)} to {format(high, form)}"
    return Cell(text, {"low": low, "high": high})


def ends(found: Estimate | None, unit: str = "") -> Cell:
    """The 95 % interval of a mean; its text stays within 0 and 100 %, and is a dash for fewer runs than LEAST.

    Two runs give an interval of 25 standard errors, which says less than that they are two.
    """
    if found is None or found.low is None or found.high is None:
        return interval(None, None)
    low, high = (max(0.0, found.low), min(100.0, found.high)) if unit == "%" else (found.low, found.high)
    text = interval(low, high).text if found.n >= LEAST else NOTHING
    return Cell(text, interval(found.low, found.high).values)


def literal(text: object) -> str:
    """`text` as Markdown that shows it letter for letter, within a table's cell too."""
    escaped = html.escape(in_one_line(str(text)), quote=False)
    return re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", escaped)


def markdown(table: Table) -> list[str]:
    """Lines of a table and its notes."""
    table = table.on_page
    rules = ["---:" if table.is_numeric(at) else "---" for at in range(len(table.headings))]
    lines = [f"| {' | '.join(map(literal, table.headings))} |", f"|{'|'.join(rules)}|"]
    for row in table.rows:
        cells = (f"**{literal(cell.text)}**" if cell.strong else literal(cell.text) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *markdown_notes(table.notes)]


def markdown_notes(notes: Sequence[Note]) -> list[str]:
    """A paragraph for each note."""
    return [line for note in notes for line in (f"{f'**{note.lead}**: ' if note.lead else ''}{literal(note.text)}", "")]


def latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    columns = "".join("r" if table.is_numeric(at) else "l" for at in range(len(table.headings)))
    head, *rows = (
        " & ".join(text.translate(LATEX) for text in texts) + r" \\"
        for texts in (table.headings, *([cell.text for cell in row] for row in table.rows))
    )
    needs = r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"
    lines = [needs, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def csv(table: Table) -> str:
    """The values in full precision, with a header."""
    text = StringIO()
    headings = dict.fromkeys(heading for record in table.records for heading in record)
    writer = csv_format.DictWriter(text, [*headings], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def to_json(content: object) -> str:
    """JSON that every reader takes: no NaN, no infinity."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
