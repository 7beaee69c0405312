#!/usr/bin/env bash
# TensorBoard hides the epochs of a resumed run where the clock of the second start is behind that of the first.
#
# tensorboard 2.21.0 reads the event files of a folder in the order of their names, which begin with the time of their
# making, and a SessionLog.START event drops what was read before of its step and later ones. The file of a resumed start
# whose clock is behind (set back, or another node's) is therefore read first, and the first start's file, with its own
# START of step 1, drops all of it. Seen: epochs 1 and 2 of the first start; 3 and 4, of the second, are gone.
# Affects runs that are requeued. en names its event files by times that only go up (en/runs/tensorboard.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check tensorboard==2.21.0 setuptools==80.9.0
"$work/venv/bin/python" - "$work/run" <<'P'
import sys
from pathlib import Path
from unittest import mock

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

run = Path(sys.argv[1])


def start(clock, epochs):
    """One start of a run, by the time that its machine's clock shows."""
    with mock.patch("time.time", lambda: clock):
        writer = EventFileWriter(str(run))
        writer.add_event(Event(step=epochs[0], session_log=SessionLog(status=SessionLog.START)))
        for epoch in epochs:
            writer.add_event(Event(step=epoch, summary=Summary(value=[Summary.Value(tag="top1", simple_value=epoch)])))
        writer.close()


def shown():
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars("top1")]


start(1_800_000_000, [1, 2])
start(1_799_999_000, [3, 4])
behind = shown()
for path in run.iterdir():
    path.unlink()
start(1_800_000_000, [1, 2])
start(1_800_001_000, [3, 4])
print("clock behind:", behind, "clock ahead:", shown())
sys.exit(not (behind == [1, 2] and shown() == [1, 2, 3, 4]))
P
echo "as described: tensorboard 2.21.0"
