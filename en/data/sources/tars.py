"""Members of uncompressed tars, and of tars in tars, read where they lie: nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from en.data.decoding import DamagedImage
from en.data.sources.source import as_line
from en.errors import UserError

OPEN_FILES = 64  # a process keeps at most: sets in shards have thousands
LONGEST_FILL = 1 << 20  # bytes after a tar's end, all zero; GNU tar fills up to 10,240
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}


class Member(NamedTuple):
    """A file in an archive: its name there, its first byte in the archive, and bytes."""

    name: str
    start: int
    size: int


class Span(NamedTuple):
    """An image file that lies in an archive, as it is: bytes `start` to `start + size`."""

    archive: Path
    start: int
    size: int

    @property
    def in_order(self) -> bool:
        return False

    def read(self) -> bytes:
        try:
            content = os.pread(opened(self.archive).number, self.size, self.start)
        except OSError as error:
            raise DamagedImage(f"{self.archive.name} cannot be read: {error.strerror}") from error
        if len(content) != self.size:
            raise DamagedImage(f"{self.archive.name} ends within it, at {len(content)} of {self.size} bytes")
        return content


class Opened:
    """A file open for reading, until it is forgotten."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.number)


@lru_cache(OPEN_FILES)
def opened(path: Path) -> Opened:
    return Opened(path)


def members(archive: Path, within: Member | None = None) -> Iterator[Member]:
    """Lists the files in a tar, in its order, without keeping them; hidden ones, as in class folders, are left out.

    Args:
        within: the member of the archive that is the tar, if it is not the archive itself. Places are the archive's.
    Raises: UserError for a file that is compressed, no tar, truncated, or followed by another tar, and for a member
        that is a link.
    """
    end = within.start + within.size if within else archive.stat().st_size
    where = f"{archive}: {within.name}" if within else f"{archive}"
    with archive.open("rb") as file:
        file.seek(within.start if within else 0)
        refuse_compressed(where, file.read(2))
        file.seek(within.start if within else 0)
        try:
            with tarfile.TarFile(fileobj=file) as tar:
                while (found := tar.next()) is not None and found.offset_data + found.size <= end:
                    tar.members.clear()  # type: ignore[attr-defined]  # else all that was listed is kept
                    if found.isdir() or Path(found.name).name.startswith((".", "@")):
                        continue
                    if not found.isreg() or found.issparse():
                        raise UserError(f"{where}: {as_line(found.name)}: a link or the like: expected plain files")
                    yield Member(as_line(found.name), found.offset_data, found.size)
                rest = tar.offset
        except tarfile.TarError as error:
            raise UserError(f"{where}: {error}: expected a whole tar") from error
        file.seek(rest)
        if found is not None or rest >= end or file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise UserError(f"{where}: truncated or damaged at byte {rest}: expected a whole tar")
        if file.read(max(0, min(end - file.tell(), LONGEST_FILL))).strip(b"\0"):
            raise UserError(f"{where}: more follows the tar's end at byte {rest}: expected one tar")


def refuse_compressed(where: str, begins: bytes) -> None:
    if kind := COMPRESSED.get(begins):
        raise UserError(f"{where}: compressed by {kind}, so that no member can be read alone: expected it uncompressed")


def compression(path: Path) -> str:
    """Names what a file is compressed by, as its first bytes say; empty for none."""
    with path.open("rb") as file:
        return COMPRESSED.get(file.read(2), "")
