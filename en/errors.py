"""How a command ends: a user's mistake or a failed run is one line on stderr, never a traceback."""

import argparse
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import NoReturn

MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130
RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint
REFUSED_NAMES = {errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
OTHERS_S = 3.0
LONGEST = 1000  # characters of a message


class Told(Exception):
    """What ends a command and is told in one line, whatever was put into it: see `in_one_line`.

    Args:
        message: the line.
        details: further lines, where a list is what the user needs.
    """

    def __init__(self, message: str, *details: str) -> None:
        super().__init__(in_one_line(message), *map(in_one_line, details))

    def __str__(self) -> str:
        return "\n  ".join(self.args)


class UserError(Told):
    """Bad input: a key, file or argument that has to change. One line that names it, its value and what was expected."""

    exit_code = MISTAKE
    common = False  # whether every rank is known to have met it


class RunError(Told):
    """A run that cannot go on, through no fault of its input's form: one line that says what happened and where."""

    exit_code = FAILURE


class Stopped(Told):
    """A run that a signal stopped after a checkpoint of it was written. One line that says where and how to go on."""

    exit_code = RESUME_ME


def in_one_line(text: str) -> str:
    """`text` with everything escaped that is not to be seen, long words and a long whole shortened in the middle."""
    visible = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    visible = re.sub(r"(\S{80})\S{100,}(\S{20})", r"\1...\2", visible)
    return visible if len(visible) <= LONGEST else f"{visible[: LONGEST - 300]} ... {visible[-290:]}"


class ShortRepr(Repr):
    """repr of whatever a user may have written: nothing long, deep or endless comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 100 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """A value as a message shows it, at most 80 characters."""
    text = ShortRepr().repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are a UserError."""

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
    """Whether Python or torch, where it has been imported, found a device's memory full."""
    kind = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    return isinstance(error, (MemoryError, kind)) or "can't allocate memory" in str(error)


def speaks() -> bool:
    """Whether this process tells of a mistake that all have found: the first of its node, and one that cannot say which it is."""
    return not (is_later("RANK", "WORLD_SIZE") and is_later("LOCAL_RANK", "LOCAL_WORLD_SIZE"))


def warn(message: str) -> None:
    """Says, once a node, what is odd and stops nothing."""
    if speaks():
        print(f"warning: {in_one_line(message)}", file=sys.stderr, flush=True)


def own_words(error: UserError) -> str:
    """The message of a mistake, with this rank's number where it alone seems to have met it.

    A later rank waits: where the first has met the mistake too and told it, the launcher ends this process meanwhile.
    """
    if speaks():
        return str(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(OTHERS_S)
    return f"rank {os.environ['RANK']}: {error}"


def is_later(rank: str, size: str) -> bool:
    """Whether these variables of the environment say that others come before this process."""
    values = [os.environ.get(name, "") for name in (rank, size)]
    return all(re.fullmatch("[0-9]{1,9}", value) for value in values) and 0 < int(values[0]) < int(values[1])


@contextmanager
def refused_names_told() -> Iterator[None]:
    """Makes a UserError of the system's refusal of a file's name that no check had foreseen, such as one that is too long."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in REFUSED_NAMES:
            raise
        raise UserError(f"{error.filename}: {error.strerror}: expected a file or folder that can be used") from error


def exit_on_error(command: Callable[[], None]) -> None:
    """Runs `command`; a UserError, RunError or Stopped ends the process with its exit code and one line."""
    try:
        with refused_names_told():
            command()
    except UserError as error:
        if speaks() or not error.common:
            print(f"error: {own_words(error)}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not isinstance(error, RunError) and not out_of_memory(error):
            raise
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"error: {in_one_line(f'{rank}{error}')}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(FAILURE)  # a thread that hangs in a read would keep sys.exit from ending the process
