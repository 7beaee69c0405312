"""What the progress of a long job says."""

from types import SimpleNamespace

from en import progress
from en.progress import Progress


def test_the_time_left_follows_from_what_this_job_did_not_from_what_was_done_before(monkeypatch, capsys):
    seconds = iter([0.0, 31.0, 62.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with Progress("epochs", 1000, before=900) as shown:
        shown.advance(0)  # a job that has done nothing yet knows no time
        shown.advance(10)
    assert capsys.readouterr().err == "epochs: 910/1000, 558 s left\n"
