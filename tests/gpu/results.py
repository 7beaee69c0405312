"""What a part is given, and how it hands back what it finds: a line of JSON each, so that a cut loses nothing."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from en.errors import in_one_line


@dataclass(frozen=True)
class Setup:
    """What a part is given.

    Attributes:
        device: cuda or cpu.
        tiny: sizes that mean nothing, for trying the parts out.
        images: where a data set is, see en.data.sources; None for generated images.
        ends: when the part has to be done, by time.monotonic().
    """

    device: str
    tiny: bool
    images: str | None
    ends: float

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()


class Report:
    """Appends what a part finds to a file.

    Args:
        path: of the file.

    Attributes:
        failures: errors in what was attempted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures: list[str] = []

    def row(self, table: str, **values: object) -> None:
        """A row of a table, which stands below those of the same title before it."""
        self._write({"table": table, "row": values})

    def figure(self, name: str, value: float | bool) -> None:
        """A figure that has a target, see targets.py; a later one of the same name replaces it."""
        self._write({"figure": name, "value": value})

    def note(self, text: str) -> None:
        self._write({"note": text})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Reports an error in `what` as a failure and lets the part continue; the log has the traceback."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failures.append(in_one_line(f"{what}: {type(error).__name__}: {error}"))
            self._write({"failure": self.failures[-1]})

    def _write(self, line: dict[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def working(
    report: Report, what: str, names: tuple[str, ...], make: Callable[[str], Callable[[], object]]
) -> dict[str, Callable[[], object]]:
    """The steps that can be made and run once; what is wrong with the others is reported."""
    found = {}
    for name in names:
        with report.attempt(f"{what}, {name}"):
            step = make(name)
            step()
            found[name] = step
    return found
