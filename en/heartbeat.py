"""Which rank fell silent: each says that it is alive, to the store that all of them share."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from en.distribution import Ranks
from en.errors import RunError

BEAT_S = 0.5
SILENCE_S = 4.0
SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe", "distributed")


@contextmanager
def departures_told(ranks: Ranks) -> Iterator[None]:
    """Makes a RunError that names the ranks that fell silent of what torch raises when ranks lose each other inside."""
    if not dist.is_initialized():
        yield
        return
    beats = Heartbeats(ranks)
    try:
        yield
    except RuntimeError as error:
        told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, dist.DistError) and not any(sign in str(error).lower() for sign in SIGNS):
            raise
        silent = beats.silent()
        names = ", ".join(map(str, silent))
        who = f"rank {names} left the run" if silent else "the ranks lost each other, and none of them fell silent"
        raise RunError(f"{who}: {told}") from error
    finally:
        beats.stop()


class Heartbeats:
    """A thread that counts up this rank's beat in the store of the process group, until it is stopped or the process ends."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._store(),), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def silent(self) -> list[int]:
        """The ranks of which nothing was heard for SILENCE_S seconds from now; the first when the store is gone with it."""
        try:
            store = self._store()
            first = self._counts(store)
            time.sleep(SILENCE_S)
            second = self._counts(store)
        except RuntimeError:
            return [0]
        return [rank for rank, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]

    def _store(self) -> Store:
        """A connection of its own: stores are not shared between threads."""
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
            wait_for_workers=False,
        )
        return PrefixStore(f"heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _beat(self, store: Store) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                store.add(str(self._ranks.rank), 1)
            except RuntimeError:  # the store is gone, and the run with it
                return

    def _counts(self, store: Store) -> list[int]:
        return [store.add(str(rank), 0) for rank in range(self._ranks.world_size)]
