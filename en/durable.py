"""Durable writes: when one returns, the file is on disk, and it is never half-written."""

import os
from pathlib import Path

PARTIAL = ".partial"


def replace(path: Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all: partial file, fsync, rename, fsync of the folder. Raises OSError."""
    partial = path.with_name(path.name + PARTIAL)
    write(partial, content)
    partial.replace(path)
    sync_folder(path.parent)


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a file and flushes it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
