"""Run folders, read for a report."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from en.config.meaning import deciding
from en.config.strict_yaml import Tree
from en.errors import UserError
from en.means import Means
from en.runs.folder import LOCK
from en.runs.read import StartRow, digests_of, read_config, read_log, read_starts, read_summary
from en.runs.row import Row
from en.runs.summary import Summary

DEPTH = 2  # folders between a path that is given and a run
OF_A_SUITE = re.compile(r"(.+-s[0-9]+)\.log")  # what a suite's runs print is kept beside their folders
TAIL = 100_000  # bytes of it that are looked at
SHORT = 12  # digits of a digest
Log = dict[float, Row]


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        path: of the folder.
        config: config.yaml by dotted keys; empty for a run that ended before it was written.
        summary: summary.json; None before the first finished epoch.
        starts: of provenance.json; empty without one, None where it is damaged.
        log: log.jsonl, the row of each epoch; of an epoch that stands there twice, the later one.
        error: the last one in what it printed, where a suite kept that; "" without one.
    """

    path: Path
    config: Tree
    summary: Summary | None
    starts: list[StartRow] | None
    log: Log
    error: str

    @cached_property
    def recipe(self) -> Tree:
        """The values of the dotted keys in which runs that are compared have to agree, and the number of ranks.

        Of a key that names a file, which may be another one under the same name, its digest too.
        """
        ranks = {"ranks": self.summary.world_size} if self.summary else {}
        found = {key: self.config[key] for key in deciding(self.config, Means.RECIPE)} | ranks
        return found | {
            key: f"{found[key]} ({digest[:SHORT]})"
            for key, digest in digests_of(self.starts or []).items()
            if found.get(key)
        }

    @property
    def seed(self) -> int | None:
        seed = self.summary.seed if self.summary else self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def is_finished(self) -> bool:
        return self.summary is not None and self.summary.epochs_done >= self.summary.epochs

    @property
    def status(self) -> str:
        """Says how far the run came."""
        if self.summary is None:
            return "no finished epoch" if self.config else "never began"
        done, planned = self.summary.epochs_done, self.summary.epochs
        return "finished" if self.is_finished else f"unfinished ({done} of {planned} epochs)"

    @property
    def outcome(self) -> str:
        """The status, and for a run that did not finish the last error that it printed."""
        return f"{self.status}; {self.error}" if self.error and not self.is_finished else self.status

    @property
    def hours(self) -> float | None:
        """Hours of training by the log, without evaluation and without work that a resumed run lost."""
        seconds = [row.seconds for row in self.log.values() if math.isfinite(row.seconds)]
        return sum(seconds) / 3600 if seconds else None


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders among the paths and in them, each once. Raises UserError for a path without any."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder: expected a run folder, or a folder of run folders")
        inside = runs_in(path, DEPTH)
        if not inside:
            raise UserError(f"{path}: holds no run: expected a run folder, or a folder of run folders")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def runs_in(path: Path, depth: int) -> list[Path]:
    """The folder itself where it holds a run, else those of the folders in it.

    A run of a suite that ended before it made its folder has a log alone, and counts as well.
    """
    if any((path / name).exists() for name in ("config.yaml", "summary.json", LOCK)):
        return [path]
    inner = sorted(path.iterdir(), key=natural) if depth else []
    found = []
    for entry in inner:
        if entry.is_dir() and not entry.name.startswith("."):
            found += runs_in(entry, depth - 1)
        elif (log := OF_A_SUITE.fullmatch(entry.name)) and not (path / log[1]).exists():
            found.append(path / log[1])
    return found


def natural(path: Path) -> list[tuple[int, str]]:
    """Returns what paths are sorted by: words as words and numbers as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(part), "") if part.isdecimal() and len(part) < 20 else (0, part) for part in parts]


def read_run(path: Path) -> Run:
    """A run folder, also one that never got far. Raises UserError that names a damaged file and the key."""
    summary = read_summary(path) if (path / "summary.json").exists() else None
    config = read_config(path) if summary or (path / "config.yaml").exists() else {}
    starts, log = read_starts(path), {row.epoch: row for row in read_log(path)}
    return Run(path, config, summary, starts, log, last_error(path.parent / f"{path.name}.log"))


def last_error(path: Path) -> str:
    """The last line of an error in what a run printed; "" without one."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error: ")), "")


def frozen(value: object) -> str:
    """A value of a configuration as text that is the same for equal values alone."""
    return json.dumps(value, sort_keys=True)
