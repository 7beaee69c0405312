"""Files that are on the disk when a write returns, and never half there."""

import os
from pathlib import Path

PARTIAL = ".partial"


def replace(path: Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all: temporary file beside it, fsync, rename, fsync of the folder. Raises OSError."""
    partial = path.with_name(path.name + PARTIAL)
    write(partial, content)
    partial.replace(path)
    sync_folder(path.parent)


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a file and has it reach the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Has a folder's names reach the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
