"""The runs of a suite that failed: why and when, kept beside their folders until they are started again."""

import hashlib
import json
import re
import time
from pathlib import Path

from pydantic import ValidationError

from en import durable
from en.config.meaning import decides
from en.config.reading import flatten
from en.config.section import Section
from en.errors import RESUME_ME, in_one_line
from en.means import Means
from en.suites.plan import Planned

STOPPED = {RESUME_ME, 130, 143}  # by a signal, as this package or a shell says it
ROOT_CAUSE = re.compile(r"^\s*exitcode\s*: (-?\d+)", re.MULTILINE)  # in torchrun's list of failures, the cause last


class Failure(Section):
    """How a run failed.

    Attributes:
        exit_code, reason: of its command, and the line in which it said why.
        at: the local time, to the minute.
        config: digest of its configuration.
        has_folder: whether it had begun to write its folder.
    """

    exit_code: int
    reason: str
    at: str
    config: str
    has_folder: bool

    def __str__(self) -> str:
        return f"failed {self.at} with exit code {self.exit_code}: {self.reason}"


def failure_path(run: Planned) -> Path:
    """Returns the file that a run's failure is kept in."""
    return run.folder.parent / f"{run.folder.name}.failed.json"


def failure_of(run: Planned) -> Failure | None:
    """Returns how a run failed; None for one that did not, has other keys now, or whose folder was removed."""
    try:
        found = Failure.model_validate_json(failure_path(run).read_bytes())
    except (OSError, ValidationError):
        return None
    same = found.config == digest_of(run) and found.has_folder == has_folder(run)
    return found if same else None


def keep_failure(run: Planned, code: int, reason: str) -> None:
    """Keeps how a run failed just now. Raises OSError."""
    at = time.strftime("%Y-%m-%d %H:%M")
    reason = in_one_line(reason.removeprefix("error: "))
    failure = Failure(exit_code=code, reason=reason, at=at, config=digest_of(run), has_folder=has_folder(run))
    durable.replace(failure_path(run), failure.model_dump_json(indent=1).encode())


def forget_failure(run: Planned) -> None:
    """Removes what is kept of a run that is started again."""
    failure_path(run).unlink(missing_ok=True)


def was_stopped(code: int, log: str) -> bool:
    """Tells whether a run was stopped or killed from outside, which is no failure of its own.

    Args:
        code: exit code of its process, negative for a signal. torchrun's own is 1, whatever became of the ranks.
        log: of its latest start.
    """
    cause = ROOT_CAUSE.findall(log)
    codes = {code, int(cause[-1])} if cause else {code}
    return any(each < 0 or each in STOPPED for each in codes)


def has_folder(run: Planned) -> bool:
    """Tells whether a run's folder is begun."""
    return (run.folder / "config.yaml").exists()


def digest_of(run: Planned) -> str:
    """Returns the SHA-256 of all keys but those that each run has a value of its own for."""
    keys = {key: value for key, value in flatten(run.config.model_dump()).items() if not decides(key, Means.OWN)}
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
