"""The folder that preparation writes: one preparation at a time, the whole data set or nothing."""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from en import durable
from en.data.ffcv.names import SUFFIX
from en.data.preparation.journal import journal_of
from en.data.sources import ALL_SPLITS
from en.errors import UserError, warn

CLASSES = "classes.json"  # the last to be placed, the first to be removed: without it, the others are no data set
WAIT_S = 3.0  # workers of a preparation that was killed hold its lock until they have ended


def files_of(splits: Iterable[str]) -> tuple[str, ...]:
    """The files of a data set with these splits, in the order in which they are placed."""
    return (*(f"{split}{end}" for split in splits for end in (".beton", SUFFIX)), "dataset.json", CLASSES)


FILES = files_of(ALL_SPLITS)


class OutFolder:
    """A folder for FILES, without those of splits that a set lacks: written under partial names, renamed together.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self, overwrite: bool) -> Iterator[None]:
        """Locks the folder for this process; of bad input, nothing is left: of what was stopped, what it goes on from.

        Raises: UserError if another preparation uses the folder, or if it holds a data set and overwrite is not set.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(lock)
            self._refuse_used(overwrite)
            try:
                yield
            except UserError:
                self._clear()
                raise
        finally:
            os.close(lock)

    def partial(self, name: str) -> Path:
        """The path to which one of FILES is written before it is put in place."""
        return self.path / f"{name}{durable.PARTIAL}"

    def write_json(self, name: str, content: object) -> None:
        durable.write(self.partial(name), f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())

    def put_in_place(self, splits: Iterable[str]) -> None:
        """Replaces the old data set with the new one, of these splits.

        If it is killed, no loader opens the folder that it leaves.
        """
        durable.sync_folder(self.path)
        (self.path / CLASSES).unlink(missing_ok=True)
        durable.sync_folder(self.path)
        placed = files_of(splits)
        for name in FILES:
            if name in placed:
                self.partial(name).replace(self.path / name)
            else:  # of a split that the old data set had
                (self.path / name).unlink(missing_ok=True)
        durable.sync_folder(self.path)
        self._clear()

    def _clear(self) -> None:
        for name in FILES:
            journal_of(self.path / name).unlink(missing_ok=True)
            self.partial(name).unlink(missing_ok=True)

    def _lock(self, descriptor: int) -> None:
        try:  # on the folder itself: leaves no file behind and ends with this process and its workers
            until = time.monotonic() + WAIT_S
            while not locks(descriptor):
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.path}: another preparation is writing to it: expected a folder that none uses"
                    )
                time.sleep(0.05)
        except OSError as error:
            warn(f"{self.path}: cannot be locked ({error.strerror}): two preparations could overwrite each other")

    def _refuse_used(self, overwrite: bool) -> None:
        held = [name for name in FILES if (self.path / name).exists()]
        half_placed = self.partial(CLASSES).exists() and CLASSES not in held
        if held and not overwrite and not half_placed:
            found = ", ".join(held)
            raise UserError(
                f"{self.path}: already holds {found}: expected a new folder, or --overwrite to replace them"
            )
        for name in held if half_placed else []:
            if not self.partial(name).exists():  # placed by the preparation that was killed, which goes on
                (self.path / name).replace(self.partial(name))


def locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
