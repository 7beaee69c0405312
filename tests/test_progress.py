"""What the progress of a long job says."""

import time
from types import SimpleNamespace

import pytest

from en import progress
from en.progress import Progress, bar, clock, duration

NOON = 1_750_000_000 // 86_400 * 86_400 + 43_200  # UTC


@pytest.fixture
def at_noon(monkeypatch):
    """Sets the clock, which stands still, to noon."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    real = {name: getattr(time, name) for name in ("localtime", "strftime")}
    stopped = SimpleNamespace(time=lambda: NOON, **real)
    monkeypatch.setattr(progress, "time", stopped)
    yield stopped
    monkeypatch.undo()
    time.tzset()


def test_the_time_left_follows_from_what_this_job_did_not_from_what_was_done_before(at_noon, capsys):
    seconds = iter([0.0, 31.0, 62.0])
    at_noon.monotonic = lambda: next(seconds)
    with Progress("epochs", 1000, before=900) as shown:
        shown.advance(0)  # a job that has done nothing yet knows no time
        shown.advance(10)
    assert capsys.readouterr().err == "epochs: 910/1000, 9 min left, until 12:09\n"


def test_another_day_is_told_with_its_date(at_noon):
    assert [clock(seconds) for seconds in (0, 43_199, 43_200)] == ["12:00", "23:59", "2025-06-16 00:00"]
    assert [duration(seconds) for seconds in (0, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_a_live_bar_shows_the_time_of_day_once_it_knows_how_fast_the_job_is(at_noon):
    live = bar()
    until = live.columns[-2]
    live.add_task("epochs", total=10, detail="")
    (task,) = live.tasks
    assert str(until.render(task)) == ""
    task.completed = 5
    task._progress.extend(progress_samples())
    assert str(until.render(task)) == "until 12:05"


def progress_samples():
    """A minute for each of two units."""
    from rich.progress import ProgressSample

    return [ProgressSample(60.0 * number, 1.0) for number in range(3)]
