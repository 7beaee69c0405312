"""Small text files that users hand in."""

import stat
from pathlib import Path

from en.errors import UserError

LARGEST = 100_000  # bytes; a configuration has 2,000


def read_text(path: Path, expected: str) -> str:
    """A text file's content.

    Args:
        expected: what the file is to be, for the refusal.
    Raises: UserError that names a file that is missing, unreadable, not a regular file (a pipe could hang, a device never end),
        larger than LARGEST, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'a pipe or device'}: expected {expected}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path}: more than {LARGEST:,} bytes: expected {expected}")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: expected {expected}") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no name of a file"
        raise UserError(f"{path}: {reason}: expected {expected}") from error
