"""Findings of a comparison: told as they come, and shown as tables at the end."""

import json
from pathlib import Path
from typing import Any, Protocol

from en.benchmarks.timing import show


class Report(Protocol):
    """Takes the findings."""

    def row(self, table: str, **values: object) -> None: ...

    def note(self, text: str) -> None: ...


class Rows:
    """Prints notes at once and tables when asked to, and appends both to a file, a line of JSON each.

    Args:
        path: of the file; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def row(self, table: str, **values: object) -> None:
        self._write({"table": table, "row": values})
        self._tables.setdefault(table, []).append(values)

    def note(self, text: str) -> None:
        self._write({"note": text})
        print(text, flush=True)

    def show(self) -> None:
        """Prints all tables."""
        for title, rows in self._tables.items():
            show(title, rows)

    def _write(self, line: dict[str, object]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
