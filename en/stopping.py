"""A wish to stop, by signal: the step is finished, a checkpoint written on all ranks together, and the process ends."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_KEY_S = 1.0  # torchrun passes a Ctrl-C on to processes that had it from the terminal: within this time it is the same one


class StopWish:
    """Remembers that this process was asked to stop, and agrees with the other ranks on the step after which all do.

    A second Ctrl-C ends the process at once (KeyboardInterrupt).

    Args:
        group: a gloo group of all ranks, or None for one process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.signal = ""
        self._group, self._heard_at = group, 0.0
        self._asked = torch.zeros(1)
        self._question: dist.Work | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are heard inside."""
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, wait: bool = False) -> bool:
        """Whether all ranks stop here. All have to ask at the same steps, and all are given the same answer.

        Args:
            wait: for the answer of now; else it is that of the step before, found out meanwhile, so that no step waits.
        """
        if self._group is None:
            return bool(self.signal)
        if self._answer():
            return True
        self._asked = torch.full((1,), float(bool(self.signal)))
        self._question = dist.all_reduce(self._asked, group=self._group, async_op=True)
        return wait and self._answer()

    def _answer(self) -> bool:
        if self._question is None:
            return False
        self._question.wait()
        self._question = None
        return bool(self._asked.item())

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.signal and now - self._heard_at > SAME_KEY_S:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._heard_at = signal.Signals(number).name, now
