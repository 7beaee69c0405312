"""Which rank fell silent: every rank sends heartbeats to the store that all of them share."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from en.distributed.collectives import gather
from en.distributed.group import connect
from en.distributed.ranks import Ranks
from en.errors import RunError

BEAT_S = 0.5
SILENCE_S = 4.0
SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe", "distributed")


@contextmanager
def naming_silent_ranks(ranks: Ranks, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Turns communication errors into a RunError that names the silent ranks."""
    if group is None:
        yield
        return
    beats = Heartbeats(ranks, name=gather(uuid.uuid4().hex, group)[0])
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, dist.DistError) and not any(sign in str(error).lower() for sign in SIGNS):
            raise
        silent = beats.silent()
        names = ", ".join(map(str, silent))
        who = f"rank {names} left the run" if silent else "the ranks lost contact, although none fell silent"
        raise RunError(f"{who}: {reason}") from error
    finally:
        beats.stop()


class Heartbeats:
    """A thread that increments this rank's counter in the ranks' store until it is stopped or the process ends.

    Args:
        name: this start's name, the same on all ranks.
    """

    def __init__(self, ranks: Ranks, name: str) -> None:
        self._ranks, self._name = ranks, name
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._store(),), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def silent(self) -> list[int]:
        """The ranks that send nothing for SILENCE_S seconds, as found by the first rank that asked.

        Rank 0 if the store died with it.
        """
        try:
            store = self._store()
            first = self._counts(store)
            time.sleep(SILENCE_S)
            second = self._counts(store)
            found = [rank for rank, (a, b) in enumerate(zip(first, second, strict=True)) if a == b]
            # Ranks that asked earlier end earlier and fall silent too.
            agreed: list[int] = json.loads(store.compare_set("silent", "", json.dumps(found)))
        except RuntimeError:
            return [0]
        with suppress(RuntimeError):
            self._outlast(store, self._ranks.world_size - len(agreed))
        return agreed

    def _outlast(self, store: Store, asking: int) -> None:
        """Keeps rank 0, whose end may be that of the store, until so many ranks have their answer, or are too late."""
        end = time.monotonic() + 2 * SILENCE_S
        answered = store.add("answered", 1)
        while self._ranks.is_first and answered < asking and time.monotonic() < end:
            time.sleep(BEAT_S / 10)
            answered = store.add("answered", 0)

    def _store(self) -> Store:
        """Opens a connection for one thread: threads cannot share one."""
        return PrefixStore(f"en/heartbeat/{self._name}", connect())

    def _beat(self, store: Store) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                store.add(str(self._ranks.rank), 1)
            except RuntimeError:  # the store is gone, and with it the run
                return

    def _counts(self, store: Store) -> list[int]:
        return [store.add(str(rank), 0) for rank in range(self._ranks.world_size)]
