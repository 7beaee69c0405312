"""Text files from users."""

import stat
from pathlib import Path

from en.errors import UserError

MAX_BYTES = 100_000  # a configuration has 2,000
MOST_OF_LIST = 2**30  # of a list of images: WebVision has 2.4 million


def read_text(path: Path, expected: str, most: int = MAX_BYTES) -> str:
    """Reads a text file.

    Args:
        expected: what the file should be, for the error message.
        most: bytes that it may have.
    Raises: UserError that names a file that is missing, unreadable, not a regular file (a pipe could hang, a
        device never end), larger than `most`, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'a pipe or device'}: expected {expected}")
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UserError(f"{path}: more than {most:,} bytes: expected {expected}")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: expected {expected}") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not a file name"
        raise UserError(f"{path}: {reason}: expected {expected}") from error
