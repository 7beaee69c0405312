"""How a command ends: a user's mistake or a failed run is one line on stderr, never a traceback."""

import argparse
import errno
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from reprlib import Repr
from typing import Any, NoReturn

from en.progress import tell

MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130
RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint
PATH_ERRORS = {errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
WAIT_FOR_FIRST_S = 3.0
MAX_MESSAGE = 1000  # characters


class OneLineError(Exception):
    """An exception that ends a command and is reported in one line, whatever its message contains: see `in_one_line`.

    Args:
        message: the line.
        details: further lines, where the user needs a list.
    """

    def __init__(self, message: str, *details: str) -> None:
        super().__init__(in_one_line(message), *map(in_one_line, details))

    def __str__(self) -> str:
        return "\n  ".join(self.args)


class UserError(OneLineError):
    """Bad input: a key, file or argument that has to change. One line with its name, value and what was expected."""

    exit_code = MISTAKE
    common = False  # whether every rank is known to have met it


class RunError(OneLineError):
    """A run that cannot continue although its input is well-formed. One line that says what happened and where."""

    exit_code = FAILURE


class Stopped(OneLineError):
    """A run that a signal stopped after it wrote a checkpoint. One line that says where, and how to resume."""

    exit_code = RESUME_ME


def in_one_line(text: str) -> str:
    """`text` with unprintable characters escaped, and long words and a long text shortened in the middle."""
    visible = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    visible = re.sub(r"(\S{80})\S{100,}(\S{20})", r"\1...\2", visible)
    return visible if len(visible) <= MAX_MESSAGE else f"{visible[: MAX_MESSAGE - 300]} ... {visible[-290:]}"


def listed(items: Sequence[str], at_most: int = 6) -> str:
    """Joins items for a line: the first few of many, and how many there are besides."""
    more = len(items) - at_most
    return "; ".join([*items[:at_most], *([f"and {more} more"] if more > 0 else [])])


class ShortRepr(Repr):
    """repr of any value that a user may have written, however long, deep or endless, in a few characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 100 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """A value as messages show it, at most 80 characters."""
    text = ShortRepr().repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see --help)")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,15}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{shown(text)}: expected a whole number from {low} to {high}")
        return int(text)

    return read


def out_of_memory(error: Exception) -> bool:
    """Tells whether Python, or torch if it has been imported, ran out of a device's memory."""
    kind = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    return isinstance(error, (MemoryError, kind)) or "can't allocate memory" in str(error)


def is_reporter() -> bool:
    """Tells whether this process reports what all ranks found: the first rank of each node, and one of unknown rank."""
    return not (is_later("RANK", "WORLD_SIZE") and is_later("LOCAL_RANK", "LOCAL_WORLD_SIZE"))


def warn(message: str) -> None:
    """Prints a warning, once a node."""
    if is_reporter():
        tell(f"warning: {in_one_line(message)}")


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Shows a warning of this package as one line; those of others as Python does, with the place in the code."""
    if category.__module__.partition(".")[0] == "en":
        warn(str(message))
    else:
        tell(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def message_of(error: UserError) -> str:
    """The error's message, preceded by this rank's number where no other rank seems to have met it.

    A later rank waits first: if the first rank has reported the error too, the launcher ends this process meanwhile.
    """
    if is_reporter():
        return str(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(WAIT_FOR_FIRST_S)
    return f"rank {os.environ['RANK']}: {error}"


def is_later(rank: str, size: str) -> bool:
    """Tells whether these environment variables hold a valid rank above 0."""
    values = [os.environ.get(name, "") for name in (rank, size)]
    return all(re.fullmatch("[0-9]{1,9}", value) for value in values) and 0 < int(values[0]) < int(values[1])


@contextmanager
def naming_unusable_paths() -> Iterator[None]:
    """Turns the system's refusal of a path that no check foresaw, such as one that is too long, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in PATH_ERRORS:
            raise
        raise UserError(f"{error.filename}: {error.strerror}: expected a usable file or folder") from error


@contextmanager
def naming_missing_packages(extras: str) -> Iterator[None]:
    """Turns the lack of another package into a UserError that names the extras of this one that bring it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "en":
            raise
        wanted = f"expected exemplar-norm[{extras}] (in its source tree: pip install '.[{extras}]')"
        refusal = UserError(f"{error.name}: not installed: {wanted}")
        refusal.common = True
        raise refusal from error


def exit_on_error(command: Callable[[], None], extras: str = "train") -> None:
    """Runs `command`; a UserError, RunError or Stopped ends the process with its exit code and one line.

    Args:
        extras: of this package that the command needs.
    """
    warnings.showwarning = show_warning
    try:
        with naming_unusable_paths(), naming_missing_packages(extras):
            command()
    except UserError as error:
        if is_reporter() or not error.common:
            tell(f"error: {message_of(error)}")
        sys.exit(error.exit_code)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            tell(str(stop))
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not isinstance(error, RunError) and not out_of_memory(error):
            raise
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        tell(f"error: {in_one_line(f'{rank}{error}')}")
        sys.stdout.flush()
        os._exit(FAILURE)  # a thread that hangs in a read would keep sys.exit from ending the process
