"""A run's folder: what was run, on what, and what came of it."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, cast

from pydantic import ValidationError

from en import durable
from en.config.reading import dump
from en.config.schema import Config
from en.errors import RunError, UserError, warn
from en.runs import checkpoint
from en.runs.board import Board, Observations, axis
from en.runs.by_class import BEST, LAST, Findings, bring_best, drop_later
from en.runs.by_class import FOLDER as EVALUATION
from en.runs.completeness import place
from en.runs.contents import Best, Checkpoint, position_of
from en.runs.course import Course
from en.runs.pictures import Pixels
from en.runs.position import Position
from en.runs.read import earlier_starts, whole_rows
from en.runs.row import Row
from en.runs.summary import Summary

LOCK = ".lock"
NOTES, LOG = "events", "log"  # NAME.jsonl of rows, each with its epoch; an observer has one more
FILES = ("config.yaml", "provenance.json", "summary.json", "last.pt", "best.pt")


P = ParamSpec("P")


def if_writing(method: Callable[Concatenate["RunFolder", P], None]) -> Callable[Concatenate["RunFolder", P], None]:
    """A method that does nothing in a folder that is not written."""

    @wraps(method)
    def silent(folder: "RunFolder", /, *arguments: P.args, **options: P.kwargs) -> None:
        if folder.writes:
            method(folder, *arguments, **options)

    return cast(Callable[Concatenate["RunFolder", P], None], silent)


class RunFolder:
    """The files of one run: configuration, provenance, logs, summary, checkpoints and TensorBoard events.

    One process writes it at a time.

    Args:
        path: of the folder, made where it is missing.
        writes: whether this process, rank 0, is that one; for the others, every method does nothing.
        observers: names of what is watched in evaluation, each with rows of its own.
    Raises: UserError for a folder that cannot be written, or in which another process is at work.
    """

    def __init__(self, path: Path, writes: bool, observers: Sequence[str] = ()) -> None:
        self.path, self.writes, self._observers = path, writes, observers
        # The log last: a row of it says that the others are there.
        self._logs = [f"{name}.jsonl" for name in (NOTES, *observers, LOG)]
        if writes:
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in (*FILES, *self._logs):
                if (path / name).is_dir():
                    raise UserError(f"{path / name}: a folder: expected a file, or none")
            for name in (checkpoint.STEPS, EVALUATION):
                (path / name).mkdir(exist_ok=True)
            self._lock = (path / LOCK).open("a")
        except OSError as error:
            raise UserError(f"run_dir={path}: {error.strerror}: expected a folder that can be written") from error
        try:  # a POSIX lock: it ends with this process, however that ends, and loader workers do not inherit it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"run_dir={path}: another run is writing into it: expected a folder of its own"
                ) from error
            warn(f"{path}: no locks here ({error.strerror}): two runs are not kept apart")

    @if_writing
    def start(
        self, config: Config, course: Course, evaluated: int, done: int, start: dict[str, Any], history: Path
    ) -> None:
        """Writes what is about to run, after an evaluation `evaluated` steps from its beginning.

        What the logs, and findings, hold of later steps is dropped: a resumed run does them again.

        Args:
            done: steps of the run that are.
            start: of this process, for provenance.json.
            history: the folder of what was run before: this one, or that of the run that a branch is of.
        """
        with self.writing():
            checkpoint.drop_partials(self.path)
            for name in self._logs:
                rows = [row for row in whole_rows(history / name) if steps_of(row, name, course) <= evaluated]
                self._write(name, "".join(f"{json.dumps(row)}\n" for row in rows))
            drop_later(self.path, course.epoch(evaluated))
            before = earlier_starts(history)
            if history != self.path:
                before = [each for each in before if begun_before(each, start)]
            self._write("provenance.json", to_json({"starts": [*before, start]}))
            # Last: by it a folder holds a run, of which the rest is then there.
            self._write("config.yaml", dump(config))
            earlier = {name: watched(self.path, name) for name in self._observers}
            self._board = Board(self.path, axis(course.key(evaluated)) + 1, done + 1, config, earlier)

    @if_writing
    def write_row(
        self,
        row: Row,
        seen: Observations,
        notes: list[dict[str, Any]],
        findings: Findings,
        is_best: bool,
        images: Pixels | None,
    ) -> None:
        """Appends a row to log.jsonl, the observers' files and TensorBoard, and its notes to events.jsonl.

        Args:
            seen: what was watched in its evaluation; what an observer saw nothing of has no row.
            notes: what happened in it: "epoch", "step" and one thing more.
            findings: of its evaluation, kept as those of the last one, and of the best one if it is that.
            images: (N, 3, H, W), as the network saw them in training; None where none were kept.
        """
        observed = [[row.key | {name: found}] if found else [] for name, found in seen.items()]
        with self.writing():
            for name in () if findings.is_empty else (LAST, BEST) if is_best else (LAST,):
                findings.write(self.path / EVALUATION / name)
            for name, rows in zip(self._logs, (notes, *observed, [row.content()]), strict=True):
                self._append(name, rows)
            self._board.write(row, seen, findings, images)

    @if_writing
    def write_loss(self, step: int, loss: float) -> None:
        """Tells TensorBoard the mean loss of the last steps up to one of those of the whole run."""
        with self.writing():
            self._board.write_loss(step, loss)

    @if_writing
    def close(self) -> None:
        """Lets another process write the folder."""
        self._board.close()
        self._lock.close()

    @if_writing
    def save(self, state: Checkpoint, keep: int, supersedes: Position | None = None) -> None:
        """Writes a checkpoint, durably, and leaves the newest `keep`.

        Args:
            supersedes: the position of an older one that is of no more use.
        """
        with self.writing():
            self._board.sync()
            checkpoint.save(state, checkpoint.step_path(self.path, state.position))
            if supersedes is not None:
                checkpoint.remove([checkpoint.step_path(self.path, supersedes)])
            checkpoint.remove(checkpoint.step_paths(self.path)[keep:])

    @if_writing
    def publish(self, position: Position, summary: Summary, best: Best | None) -> None:
        """Makes the checkpoint after an evaluation last.pt, and best.pt where it is, and writes summary.json."""
        path = checkpoint.step_path(self.path, position)
        with self.writing():
            checkpoint.link(path, self.path / "last.pt")
            if best and position_of(best) == position:
                checkpoint.link(path, self.path / "best.pt")
            self._write("summary.json", to_json(summary.model_dump()))

    @if_writing
    def take(self, origin: Path, saved: Checkpoint, later: Sequence[Path], home: Path) -> None:
        """Makes a checkpoint the newest of the folder, before anything that belongs to later ones is dropped.

        A kill in between leaves a run that goes on from whichever is the newest then, with all that belongs to it.

        Args:
            origin: where the checkpoint lies.
            later: those after it, the newest first.
            home: the folder of the run that it is of: another one in a new branch.
        """
        with self.writing():
            if home != self.path:
                bring_best(home, self.path)
            checkpoint.link(origin, checkpoint.step_path(self.path, saved.position))
            checkpoint.remove(later)
            self._bring_best(saved.best, home)

    @if_writing
    def settle(self, saved: Checkpoint, epochs: float) -> None:
        """Does again what a kill may have left undone after a checkpoint was written, and drops what is of later steps.

        Args:
            epochs: of the whole run, as it is configured now.
        """
        with self.writing():
            self._drop_later(saved.last_evaluation)
        if saved.summary is not None:
            self.publish(saved.position, saved.summary.model_copy(update={"epochs": epochs}), saved.best)

    def _drop_later(self, evaluated: Position) -> None:
        """Removes last.pt and summary.json of steps that the run is to do again, or that another run did."""
        last = self.path / "last.pt"
        if last.exists() and getattr(whole_checkpoint(last), "position", None) != evaluated:
            checkpoint.remove([last])
        if not last.exists():
            (self.path / "summary.json").unlink(missing_ok=True)

    def _bring_best(self, best: Best | None, home: Path) -> None:
        """Makes best.pt the checkpoint of the best score so far; none, with a warning, where that is there no more."""
        top = self.path / "best.pt"
        if is_best(top, best) and checkpoint.sum_path(top).is_file():
            return
        found = [home / "best.pt", checkpoint.step_path(home, position_of(best))] if best else []
        for path in found:
            if is_best(path, best):
                checkpoint.link(path, top)
                return
        if best is not None or top.exists():
            checkpoint.remove([top])
            warn(f"{top}: the checkpoint of the best score up to the one resumed from is no more: none")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises RunError for what the file system refuses, and for a folder deleted or replaced during the run."""
        if not self._is_there():
            raise RunError(
                f"run_dir={self.path}: expected the folder that this run began in: it was deleted or replaced"
            )
        try:
            yield
        except OSError as error:
            where, reason = error.filename or self.path, error.strerror or error
            raise RunError(f"{where}: {reason}; checkpoints written before are whole") from error

    def _is_there(self) -> bool:
        try:
            return os.path.samestat((self.path / LOCK).stat(), os.fstat(self._lock.fileno()))
        except OSError:
            return False

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows))
            file.flush()
            # Synced here, as TensorBoard's are, because the checkpoint that follows counts on these rows.
            os.fsync(file.fileno())

    def _write(self, name: str, content: str) -> None:
        durable.replace(self.path / name, content.encode())


def whole_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint, unless it is damaged."""
    try:
        return checkpoint.load(path)
    except UserError:
        return None


def is_best(path: Path, best: Best | None) -> bool:
    """Tells whether a checkpoint is that of the best score."""
    found = whole_checkpoint(path) if path.exists() else None
    if best is None or found is None:
        return False
    return found.best == best and found.position == position_of(best)


def begun_before(earlier: dict[str, Any], start: dict[str, Any]) -> bool:
    """Tells whether a start of a run had begun when its checkpoint was written at which another start resumes."""
    try:
        first, second = (Position.model_validate(each.get("resumed_at", {})) for each in (earlier, start))
    except ValidationError:  # of another version, or changed by hand
        return True
    return place(first) < place(second)


def watched(path: Path, name: str) -> list[dict[str, Any]]:
    """Reads what an observer saw in the evaluations of a run so far."""
    rows = whole_rows(path / f"{name}.jsonl", silent=True)
    return [row[name] for row in rows if isinstance(row.get(name), dict)]


def steps_of(row: Mapping[str, Any], name: str, course: Course) -> float:
    """The steps of the run after which a row of a log was written, or of which a note is."""
    if name == f"{NOTES}.jsonl":
        # An epoch that is over may have had more steps than those of today's batches.
        return float((row["epoch"] - 1) * course.epoch_steps + min(row.get("step", 0), course.epoch_steps))
    return float(row.get("step", row["epoch"] * course.epoch_steps))


def to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def new_run_path(config: Config, config_path: str) -> Path:
    """run_dir, or a new name under runs/."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(config_path).stem}-{config.norm.name}-s{config.seed}-{stamp}"


def refuse_used(path: Path) -> None:
    """Raises UserError for a folder that a new run would write over."""
    if (path / "config.yaml").exists() or (path.exists() and not path.is_dir()):
        held = "a run" if path.is_dir() else "a file"
        raise UserError(f"run_dir={path}: holds {held} already: expected a new folder, or --resume {path}")
