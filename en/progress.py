"""The progress of a long job: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_LINE_EVERY_S = 30.0


def tell(line: str) -> None:
    """Prints a line on stderr at once, in one write, so that lines of several processes do not run together."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Says how long something takes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Says what time it is so many seconds from now, with the date where that is another day."""
    now = time.time()
    today, then = time.localtime(now), time.localtime(now + seconds)
    return time.strftime("%H:%M" if today[:3] == then[:3] else "%Y-%m-%d %H:%M", then)


def bar() -> "Bar":
    """A live bar; rich is imported here, for a terminal only."""
    from rich import progress as parts
    from rich.console import Console
    from rich.text import Text

    class Until(parts.ProgressColumn):
        """The time of day at which the job will be done."""

        max_refresh = 0.5

        def render(self, task: parts.Task) -> Text:
            left = task.time_remaining
            return Text("" if left is None else f"until {clock(left)}")

    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TextColumn("left"),
        parts.TimeRemainingColumn(),
        Until(),
        parts.TextColumn("{task.fields[detail]}"),
    )
    return parts.Progress(*columns, console=Console(stderr=True), transient=True)


class Progress:
    """Shows on stderr how much of a job is done, with elapsed and remaining time, and the time of day at its end.

    Args:
        label: name of the job.
        total: units of work.
        visible: whether to show anything; False on ranks other than 0.
        before: units that were done earlier, and say nothing of how fast this job is.
    """

    def __init__(self, label: str, total: int, visible: bool = True, before: int = 0) -> None:
        self.label, self.total, self.done, self._before = label, total, before, before
        self._visible = visible
        self._started = self._last_line = time.monotonic()
        self._bar = bar() if visible and sys.stderr.isatty() else None
        if self._bar:
            self._task = self._bar.add_task(label, total=total, completed=before, detail="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Counts `units` as done; `detail` is shown after the bar."""
        self.done += units
        if self._bar:
            self._bar.update(self._task, completed=self.done, detail=detail)
            return
        now = time.monotonic()
        if self._visible and self.done > self._before and now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            left = (now - self._started) / (self.done - self._before) * (self.total - self.done)
            time_left = f"{duration(left)} left, until {clock(left)}"
            tell(f"{self.label}: {self.done}/{self.total}, {time_left} {detail}".rstrip())
