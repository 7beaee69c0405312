"""Signals that ask a process to stop, handled from its first line to its last."""

import os
import signal
import time
from types import FrameType, TracebackType

from en.errors import INTERRUPTED, RESUME_ME, is_reporter

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_KEY_S = (
    1.0  # torchrun passes a Ctrl-C on to processes that had it from the terminal: within this time it is the same one
)


class StopRequest:
    """Remembers the first signal inside `with` that asked this process to stop.

    Before `defer`, when nothing has been written, a signal ends the process at once: exit code RESUME_ME, or
    INTERRUPTED for Ctrl-C. After it, the run looks at `signal` between its steps; a second Ctrl-C raises
    KeyboardInterrupt. Once the block is left otherwise, signals are ignored, so that none changes the exit code while
    the process ends.

    Attributes:
        signal: its name; empty where there was none.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._deferred, self._heard_at = False, 0.0
        self._interrupted = False

    def __enter__(self) -> "StopRequest":
        for number in STOPPING:
            signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in () if self._interrupted else STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def defer(self) -> None:
        """From here on, signals wait until the run asks for them."""
        self._deferred = True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if not self._deferred:
            end_at_once(name)
        if number == signal.SIGINT and self.signal and now - self._heard_at > SAME_KEY_S:
            self._interrupted = True
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._heard_at = name, now


def end_at_once(name: str) -> None:
    """Ends a process that has written nothing yet, wherever it is: an exception might be caught on its way."""
    code = INTERRUPTED if name == "SIGINT" else RESUME_ME
    if is_reporter():
        os.write(2, f"stopped by {name} before the run began: nothing was written (exit code {code})\n".encode())
    os._exit(code)
