"""The folder that preparation writes: one preparation at a time, the whole set or none of it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from en import durable
from en.data.sources import SPLITS
from en.errors import UserError, warn

CLASSES = "classes.json"  # the last to come and the first to go: without it, the others are not a set
FILES = (*(f"{split}.beton" for split in SPLITS), "dataset.json", CLASSES)


class OutFolder:
    """A folder for {train,val}.beton, dataset.json and classes.json, which are written beside their places and put there together.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self, overwrite: bool) -> Iterator[None]:
        """Inside, this process alone writes; what it has not put in place is removed at the end.

        Raises: UserError for a folder in which another preparation is at work, or that holds a set, unless it is overwritten.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(lock)
            self._refuse_used(overwrite)
            try:
                yield
            finally:
                for name in FILES:
                    self.partial(name).unlink(missing_ok=True)
        finally:
            os.close(lock)

    def partial(self, name: str) -> Path:
        """Where one of FILES is written before it is put in place."""
        return self.path / f"{name}{durable.PARTIAL}"

    def write_json(self, name: str, content: object) -> None:
        durable.write(self.partial(name), f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())

    def put_in_place(self) -> None:
        """Replaces the old set by the one that is written. Killed in between, it leaves a folder that no loader opens."""
        durable.sync_folder(self.path)
        (self.path / CLASSES).unlink(missing_ok=True)
        durable.sync_folder(self.path)
        for name in FILES:
            self.partial(name).replace(self.path / name)
        durable.sync_folder(self.path)

    def _lock(self, descriptor: int) -> None:
        try:  # of the folder itself, so that no file is left behind; it ends with this process and its workers
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another preparation is writing into it: expected a folder of its own") from error
        except OSError as error:
            warn(f"{self.path}: no locks here ({error.strerror}): two preparations are not kept apart")

    def _refuse_used(self, overwrite: bool) -> None:
        held = [name for name in FILES if (self.path / name).exists()]
        half_placed = self.partial(CLASSES).exists() and CLASSES not in held
        if held and not overwrite and not half_placed:
            raise UserError(f"{self.path}: holds {', '.join(held)} already: expected a new folder, or --overwrite to replace them")
