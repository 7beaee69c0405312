"""How a command ends: a user's mistake or a failed run is one line on stderr, never a traceback."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130
RESUME_ME = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint


class UserError(Exception):
    """Bad input: a key, file or argument that has to change. One line that names it, its value and what was expected."""

    exit_code = MISTAKE


class RunError(Exception):
    """A run that cannot go on, through no fault of its input's form: one line that says what happened and where."""

    exit_code = FAILURE


class Stopped(Exception):
    """A run that a signal stopped after a checkpoint of it was written. One line that says where and how to go on."""

    exit_code = RESUME_ME


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see --help)")


def out_of_memory() -> type[Exception]:
    """What torch raises when a GPU's memory is full, where torch has been imported."""
    kind: type[Exception] = getattr(sys.modules.get("torch"), "OutOfMemoryError", RunError)
    return kind


def speaks() -> bool:
    """Whether this process tells of a mistake that all may have found: the first of its node."""
    return "0" in (os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", ""))


def exit_on_error(command: Callable[[], None]) -> None:
    """Runs `command`; a UserError, RunError or Stopped ends the process with its exit code and one line."""
    try:
        command()
    except UserError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not isinstance(error, (RunError, out_of_memory())):
            raise
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"error: {rank}{error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(FAILURE)  # a thread that hangs in a read would keep sys.exit from ending the process
