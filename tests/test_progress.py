"""What the progress of a long job says."""

import re
import time

import pytest

from en import progress
from en.progress import Progress


def test_the_time_left_follows_from_what_this_job_did_not_from_what_was_done_before(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0)
    with Progress("epochs", 1000, before=900) as shown:
        shown.advance(0)  # what a job that has done nothing yet says
        started = time.monotonic()
        time.sleep(1)
        shown.advance(10)
        passed = time.monotonic() - started
    line = re.fullmatch(r"epochs: 910/1000, (\d+) s left\n", capsys.readouterr().err)
    assert line and int(line[1]) == pytest.approx(9 * passed, abs=1)
