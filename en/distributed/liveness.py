"""Which rank fell silent: each says that it is alive, to the store that all of them share."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from en.distributed.ranks import Ranks, connect, gather
from en.errors import RunError

BEAT_S = 0.5
SILENCE_S = 4.0
SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe", "distributed")


@contextmanager
def departures_told(ranks: Ranks, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Makes a RunError that names the ranks that fell silent of what torch raises when ranks lose each other inside."""
    if group is None:
        yield
        return
    beats = Heartbeats(ranks, name=gather(uuid.uuid4().hex, group)[0])
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
    """A thread that counts up this rank's beat in the ranks' store, until it is stopped or the process ends.

    Args:
        name: of this start, the same on all ranks.
    """

    def __init__(self, ranks: Ranks, name: str) -> None:
        self._ranks, self._name = ranks, name
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._store(),), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def silent(self) -> list[int]:
        """The ranks of which nothing is heard for SILENCE_S seconds, as the rank that asked first found them.

        Rank 0 when the store has gone with it.
        """
        try:
            store = self._store()
            first = self._counts(store)
            time.sleep(SILENCE_S)
            second = self._counts(store)
            found = [rank for rank, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]
            agreed = store.compare_set("silent", "", json.dumps(found))  # those who asked first end first, and fall silent too
        except RuntimeError:
            return [0]
        return list(json.loads(agreed))

    def _store(self) -> Store:
        """A connection of its own: they are not shared between threads."""
        return PrefixStore(f"en/heartbeat/{self._name}", connect())

    def _beat(self, store: Store) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                store.add(str(self._ranks.rank), 1)
            except RuntimeError:  # the store is gone, and the run with it
                return

    def _counts(self, store: Store) -> list[int]:
        return [store.add(str(rank), 0) for rank in range(self._ranks.world_size)]
