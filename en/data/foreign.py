"""Files among the images that are none, or are cut short, found by their first and last bytes."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from en.data.decoding import UnusableImage, decode_image, read_file
from en.data.sources import Sample
from en.errors import UserError, listed

ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND"}  # of JPEG and PNG files, by how they begin
HEAD, TAIL = 16, 1024  # bytes; what some cameras and editors write after an image's end is shorter


def refuse_foreign(folder: Path, samples: Sequence[Sample]) -> None:
    """Raises UserError that names the files that are no images. Takes about a second for 50,000 local files."""
    files = [path for sample in samples for path in (sample.image, sample.target) if isinstance(path, Path)]
    faults = [f"{os.path.relpath(path, folder)}: {fault}" for path in files if (fault := fault_of(path))]
    if faults:
        raise UserError(
            f"{folder}: {len(faults)} of {len(files)} files are not intact images: {listed(faults)}: expected images, "
            "and other files under names that begin with '.'"
        )


def fault_of(path: Path) -> str:
    """Returns what is wrong with an image file, as far as its ends tell; empty for nothing.

    A JPEG or PNG file that does not end as one is decoded, all others are opened.
    """
    head, tail = ends_of(path)
    end = next((end for start, end in ENDS.items() if head.startswith(start)), None)
    if end in tail if end else head and opens(path):
        return ""
    try:
        return decode_image(read_file(path)).warning
    except UnusableImage as error:
        return str(error)


def ends_of(path: Path) -> tuple[bytes, bytes]:
    """Reads the first HEAD and the last TAIL bytes of a file; gives none of what is no file or cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
        try:
            return os.pread(file, HEAD, 0), os.pread(file, TAIL, max(0, os.fstat(file).st_size - TAIL))
        finally:
            os.close(file)
    except OSError:
        return b"", b""


def opens(path: Path) -> bool:
    """Returns whether Pillow knows a file's form; none of its pixels is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return True
    except Exception:  # Pillow raises many kinds of error for damaged files
        return False
