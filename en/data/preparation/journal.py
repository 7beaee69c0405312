"""A split's .beton file as it grows, with a journal of what was found in each sample: what is killed goes on."""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from en.data.ffcv.writer import BetonWriter, Encoded, Kept
from en.data.preparation.remarks import NONE, Checked
from en.data.targets import Field
from en.errors import RunError, UserError, warn

SAVE_EVERY_S = 5.0  # what a kill loses at most
FRAME = struct.Struct("<II")  # length and CRC-32 of what follows
ENTRY = np.dtype(  # of a sample; texts follow it, JSON
    [
        ("flags", "u1"),
        ("mode", "u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("target", "<i8"),
        ("places", "<u8", (2, 2)),
        ("checksum", "<u4"),
        ("digest", "u1", 32),
        ("texts", "<u4"),
    ]
)
USABLE, STORED, AS_IT_IS = 1, 2, 4  # flags


class Journal:
    """Reads what is known of the samples of a file, in their order: frames that are whole or are not counted.

    Args:
        plan: all that decides the file's bytes; the journal of another plan is begun anew.

    Attributes:
        is_new: whether it holds nothing.
    """

    def __init__(self, path: Path, plan: dict[str, object]) -> None:
        self.path, self._plan = path, as_bytes(plan)
        path.touch()
        self._file = path.open("r+b")
        found = next(self._frames(), None)
        self.is_new = found != self._plan
        if found is not None and self.is_new:
            warn(f"{path.parent}: holds a part of another preparation, which is removed: this one begins anew")
        if self.is_new:
            self.begin()
        self._pending = bytearray()

    def begin(self) -> None:
        """Forgets all samples."""
        self.is_new = True
        self._file.truncate(0)
        self._end = 0
        self._write(self._plan)

    def entries(self) -> Iterator[tuple[Checked, Kept | None]]:
        """Yields what is noted of each sample, and where it lies if it was stored; new notes come after the last."""
        frames = self._frames()
        next(frames)
        for frame in frames:
            yield from entries_of(frame)

    def add(self, checked: Checked, kept: Kept | None) -> None:
        """Notes a sample; `save` makes that last."""
        self._pending += entry_of(checked, kept)

    def save(self) -> None:
        """Flushes the notes to disk."""
        if self._pending:
            self._write(self._pending)
            self._pending.clear()

    def close(self) -> None:
        self._file.close()

    def _frames(self) -> Iterator[bytes]:
        """Reads whole frames; a torn one and what follows it is overwritten."""
        self._end = 0
        for content in frames_in(self._file):
            self._end += FRAME.size + len(content)
            yield content

    def _write(self, content: bytes | bytearray) -> None:
        self._file.seek(self._end)
        self._file.write(FRAME.pack(len(content), zlib.crc32(content)) + content)
        self._file.truncate()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end = self._file.tell()


def as_bytes(plan: dict[str, object]) -> bytes:
    return json.dumps(plan, sort_keys=True).encode()


def frames_in(file: BinaryIO) -> Iterator[bytes]:
    """Reads a journal's whole frames, from its beginning to the first that is torn."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(FRAME.size)
        length, checksum = FRAME.unpack(head) if len(head) == FRAME.size else (0, 0)
        content = file.read(length)
        if not length or len(content) != length or zlib.crc32(content) != checksum:
            return
        at += FRAME.size + length
        yield content


def entry_of(checked: Checked, kept: Kept | None) -> bytes:
    texts = {
        name: value
        for name, value in (
            ("complaint", checked.complaint),
            ("note", checked.note),
            ("oddities", list(checked.oddities)),
            ("counts", checked.counts.tolist()),
        )
        if value
    }
    said = json.dumps({"name": checked.name} | texts).encode()
    row = np.zeros(1, ENTRY)
    flags = USABLE * (checked.encoded is not None) | STORED * (kept is not None) | AS_IT_IS * checked.is_as_it_is
    row["flags"], row["texts"] = flags, len(said)
    if checked.digest:
        row["digest"] = np.frombuffer(checked.digest, np.uint8)
    if kept is not None:
        row["mode"], row["width"], row["height"], row["target"] = kept.mode, kept.width, kept.height, kept.target
        row["places"][0, : len(kept.places)] = kept.places
        row["checksum"] = kept.checksum
    return row.tobytes() + said


def entries_of(frame: bytes) -> Iterator[tuple[Checked, Kept | None]]:
    at = 0
    while at < len(frame):
        row = np.frombuffer(frame, ENTRY, 1, at)[0]
        at += ENTRY.itemsize
        said = json.loads(frame[at : at + int(row["texts"])])
        at += int(row["texts"])
        flags, kept = int(row["flags"]), None
        size = int(row["mode"]), int(row["width"]), int(row["height"])
        if flags & STORED:
            places = tuple((int(start), int(length)) for start, length in row["places"] if length)
            kept = Kept(*size, int(row["target"]), places, int(row["checksum"]))
        checked = Checked(
            said["name"],
            Encoded(*size, b"", int(row["target"])) if flags & USABLE else None,
            said.get("complaint", ""),
            said.get("note", ""),
            row["digest"].tobytes(),
            bool(flags & AS_IT_IS),
            np.array(said["counts"], np.int64) if "counts" in said else NONE,
            tuple(said.get("oddities", ())),
        )
        yield checked, kept


class GrowingFile:
    """A .beton file and its journal: written together, so that what the journal notes is in the file.

    Args:
        path: the file; the journal stands beside it.
        plan: see Journal.
        at_most, field: see BetonWriter.
    """

    def __init__(self, path: Path, plan: dict[str, object], at_most: int, field: Field) -> None:
        self.path, self._journal = path, Journal(journal_of(path), plan)
        if not self._journal.is_new and not self._holds_all():
            warn(f"{path}: shorter than its journal says: this preparation begins anew")
            self._journal.begin()
        if self._journal.is_new:
            path.unlink(missing_ok=True)
        self._writer = BetonWriter(path, at_most, field)
        self._saved_at = time.monotonic()

    def earlier(self) -> Iterator[Checked]:
        """Yields what is known of the samples that were seen before. To be read to its end before others are added."""
        for checked, kept in self._journal.entries():
            if kept is not None:
                self._writer.keep(kept)
            yield checked
        self._writer.cut()

    def add(self, checked: Checked, is_stored: bool) -> None:
        """Notes a sample and writes it if it is to be stored."""
        kept = self._writer.add(checked.encoded) if is_stored and checked.encoded is not None else None
        self._journal.add(checked, kept)
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Makes what there is outlast a kill, and a loss of power: first the samples, then the notes on them."""
        self._writer.flush()
        self._journal.save()
        self._saved_at = time.monotonic()

    def finish(self) -> int:
        """Makes it a whole .beton file. Returns: the number of samples."""
        self.save()
        return self._writer.finish()

    def close(self) -> None:
        self._writer.close()
        self._journal.close()

    def _holds_all(self) -> bool:
        end = max((at + size for _, kept in self._journal.entries() if kept for at, size in kept.places), default=0)
        return self.path.is_file() and self.path.stat().st_size >= end


def stored_in(path: Path, plan: dict[str, object], after: int = 0) -> Iterator[Checked]:
    """Reads what a file that was written by its journal holds, with the bytes of what is stored.

    Args:
        after: how many samples to pass over.
    Raises: UserError for one that is missing or of another plan; RunError for one whose bytes are not as written.
    """
    try:
        journal, file = journal_of(path).open("rb"), path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file: expected what --shard writes") from error
    with journal, file:
        frames = frames_in(journal)
        if next(frames, None) != as_bytes(plan):
            raise UserError(f"{path.parent}: expected a shard of this source, with these options and this version")
        for checked, kept in islice((entry for frame in frames for entry in entries_of(frame)), after, None):
            if kept is None:
                yield checked
                continue
            contents = [os.pread(file.fileno(), size, at) for at, size in kept.places]
            if zlib.crc32(b"".join(contents)) != kept.checksum:
                raise RunError(f"{path}: {checked.name}: damaged: its bytes are not as written")
            target = contents[1] if len(contents) > 1 else kept.target
            yield checked._replace(encoded=Encoded(kept.mode, kept.width, kept.height, contents[0], target))


def journal_of(path: Path) -> Path:
    """The journal of a file that is being written."""
    return path.with_name(f"{path.name.partition('.')[0]}.journal")
