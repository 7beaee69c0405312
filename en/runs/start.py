"""Where a run begins: with the seed, with other weights, or at a checkpoint, in its own folder or as a branch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from en.config.meaning import names_the_run
from en.config.reading import merged, overridden, parse_override, validate
from en.config.schema import Config
from en.config.strict_yaml import Tree, read_tree
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.progress import tell
from en.runs import checkpoint
from en.runs.completeness import place
from en.runs.contents import Best, Checkpoint, Data
from en.runs.folder import RunFolder, new_run_path, refuse_used
from en.runs.position import Position
from en.runs.read import earlier_starts
from en.runs.resume import best_begins_anew, check_resumable, rebuild_as_begun, resumption


@dataclass(frozen=True)
class Fresh:
    """A run that begins with the seed.

    Attributes:
        folder: of the run.
    """

    folder: Path

    @property
    def position(self) -> Position:
        """How much of the run is done."""
        return Position()

    @property
    def evaluated(self) -> Position:
        """Where the last evaluation was."""
        return Position()

    @property
    def circumstances(self) -> dict[str, Any]:
        """Returns what the bits of the steps so far depended on: see provenance.circumstances."""
        return {}

    @property
    def fact(self) -> object:
        """Tells the checkpoint from any other one; None without one."""
        return None

    def check(self, config: Config, data: Data, classes: list[str]) -> None:
        """Raises UserError where the run would not go on as the one that it began as."""

    def rebuild(self, model: nn.Module, config: Config) -> None:
        """Gives a network's normalizers the options that the run began with."""

    def best(self, config: Config, data: Data) -> Best | None:
        """Returns the best score so far, if there is one that compares with those to come."""
        return None

    def record(self, config: Config, data: Data, circumstances: dict[str, Any]) -> dict[str, Any]:
        """Returns what provenance.json keeps of this start beside what it keeps of any: see `resumption`."""
        return {}

    def enter(self, folder: RunFolder) -> None:
        """Makes the checkpoint the newest of the folder, before anything else in it is touched."""

    def settle(self, folder: RunFolder, epochs: float) -> None:
        """Does again what a kill may have left undone, once the folder says what is about to run."""

    @property
    def history(self) -> Path:
        """The folder whose logs and provenance the run goes on from."""
        return self.folder


@dataclass(frozen=True)
class FromWeights(Fresh):
    """A run that begins with the seed and with the weights of another one, or of another program: the key `init`.

    Attributes:
        weights: their file, or a run folder.
    """

    weights: Path


@dataclass(frozen=True)
class Resumed(Fresh):
    """A run that goes on from a checkpoint.

    Attributes:
        asked: the run folder or file that was named.
        origin: the checkpoint, by its path.
        saved: what it holds.
        home: the folder of the run that it is of: another one than `folder` in the first start of a branch.
        drops: whether the folder holds later steps, which are to go.
    """

    asked: Path
    origin: Path
    saved: Checkpoint
    home: Path
    drops: bool = False

    @property
    def position(self) -> Position:
        return self.saved.position

    @property
    def evaluated(self) -> Position:
        return self.saved.last_evaluation

    @property
    def circumstances(self) -> dict[str, Any]:
        return self.saved.circumstances

    @property
    def fact(self) -> object:
        return self.saved.position.model_dump() | {"digest": self.saved.digest}

    def check(self, config: Config, data: Data, classes: list[str]) -> None:
        check_resumable(self.saved, config, data, classes, self.origin)

    def rebuild(self, model: nn.Module, config: Config) -> None:
        rebuild_as_begun(model, self.saved, config, self.origin)

    def best(self, config: Config, data: Data) -> Best | None:
        return None if best_begins_anew(self.saved, config, data) else self.saved.best

    def record(self, config: Config, data: Data, circumstances: dict[str, Any]) -> dict[str, Any]:
        source = {"asked": str(self.asked.resolve()), "checkpoint": str(self.origin.resolve())}
        kept: dict[str, Any] = {"resumed_from": source | {"sha256": self.saved.digest}}
        if self.home != self.folder:
            kept |= {"branch_of": str(self.home.resolve())}
        if self.drops:
            kept |= {"dropped": [path.name for path in self.later()]}
        return resumption(self.saved, config, data, circumstances) | kept

    def later(self) -> list[Path]:
        """Lists the checkpoints in the folder of steps that the run is to do again, the newest first."""
        here = checkpoint.step_path(self.folder, self.saved.position)
        return [path for path in checkpoint.step_paths(self.folder) if path > here]

    @property
    def history(self) -> Path:
        return self.home

    def enter(self, folder: RunFolder) -> None:
        folder.take(self.origin, self.saved, self.later(), self.home)

    def settle(self, folder: RunFolder, epochs: float) -> None:
        folder.settle(self.saved, epochs)


Start: TypeAlias = Fresh | FromWeights | Resumed


def find_start(config: Config, config_path: str, drop_later: bool = False) -> Start:
    """Finds where the run begins, by `resume`:

    1. unset: with the seed, in a new folder;
    2. auto: from run_dir's newest whole checkpoint, or, where it has none, with the seed;
    3. a run folder, or a checkpoint in it: from its newest whole one, or that one. With a run_dir elsewhere a branch
       begins there, or goes on from its own newest; an older checkpoint than the newest in the run's own folder needs
       `drop_later`. When torchrun starts the ranks again, a run that has begun at it goes on from its own newest.

    Raises: UserError for a checkpoint that is missing or damaged, for a folder in which none is whole, for one that
        holds another run, and for later steps that would be lost unasked.
    """
    resume = config.resume
    if resume is None:
        folder = new_run_path(config, config_path)
        refuse_used_once(folder)
        return begun_new(folder, config)
    if resume == "auto":
        folder = new_run_path(config, config_path)
        if found := checkpoint.newest(folder):
            return Resumed(folder, folder, *found, folder)
        if Ranks.from_environment().is_first:
            tell(f"resume=auto: {folder} has no checkpoint yet: a new run begins")
        return begun_new(folder, config)
    asked = Path(resume)
    home = asked if asked.is_dir() else run_of(asked)
    folder = home if config.run_dir is None else Path(config.run_dir)
    if folder.resolve() != home.resolve():
        return branch(folder, asked, home)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if asked.is_dir() or (restarted and begun_at(asked, earlier_starts(folder)[-1:])):
        return Resumed(folder, asked, *newest_of(home, asked), folder)
    saved = checkpoint.load(asked)
    newest, latest = checkpoint.newest(home) or (asked, saved)
    older = place(saved.position) < place(latest.position)
    if older and not drop_later:
        raise UserError(
            f"--resume {resume}: {saved.position.words()}, of a run that is at {latest.position.words()}: expected "
            f"{newest}, or run_dir=FOLDER for a branch in a folder of its own, or --drop-later to drop what came after"
        )
    return Resumed(folder, asked, asked, saved, folder, older)


def begun_new(folder: Path, config: Config) -> Fresh | FromWeights:
    """A run that begins with the seed, and with the weights of `init` where there is one."""
    return Fresh(folder) if config.init is None else FromWeights(folder, Path(config.init))


def branch(folder: Path, asked: Path, home: Path) -> Resumed:
    """A run that goes on elsewhere than the one whose checkpoint it begins with, or has done so already."""
    own = [start for start in earlier_starts(folder) if "branch_of" in start][-1:]  # others are of the run before it
    if begun_at(asked, own) and (found := checkpoint.newest(folder)):
        return Resumed(folder, asked, *found, folder)
    refuse_used_once(folder)
    origin, saved = newest_of(home, asked) if asked.is_dir() else (asked, checkpoint.load(asked))
    return Resumed(folder, asked, origin, saved, home)


def begun_at(asked: Path, starts: list[dict[str, Any]]) -> bool:
    """Tells whether one of a run's starts, by its provenance.json, was asked to go on from there."""
    sources = [start.get("resumed_from") for start in starts]
    return any(isinstance(source, dict) and source.get("asked") == str(asked.resolve()) for source in sources)


def newest_of(home: Path, asked: Path) -> tuple[Path, Checkpoint]:
    found = checkpoint.newest(home)
    if found is None:
        raise UserError(f"--resume {asked}: expected a run folder with a checkpoint, found none")
    return found


def refuse_used_once(folder: Path) -> None:
    """Raises UserError, on the first rank, for a folder that holds a run."""
    if Ranks.from_environment().is_first:
        refuse_used(folder)


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent if path.parent.name == checkpoint.STEPS else path.parent


def load_begun(overrides: list[str]) -> tuple[Config, str]:
    """The configuration of the run that `overrides` resume, with them over it.

    It is that of the run's folder, as it was started last, or else of the checkpoint; where the run lies is not taken
    from there, so that it may have been moved.

    Returns: it, and the file that it is from. Raises: UserError as `load_config`, and where they resume no run.
    """
    typed: Tree = {}
    for override in overrides:
        typed = merged(typed, parse_override(override))
    resume = typed.get("resume")
    if not isinstance(resume, str) or resume == "auto":
        raise UserError("CONFIG: missing: expected a YAML file, see configs/, or --resume RUN, which has its own")
    asked = Path(resume)
    path = (asked if asked.is_dir() else run_of(asked)) / "config.yaml"
    # A checkpoint may have gone meanwhile: one from which a run began that torchrun restarts.
    if not (asked.is_file() or (resume and path.is_file() and (asked.is_dir() or asked.suffix == ".pt"))):
        found = f"a folder without {path.name}" if asked.is_dir() else "no such file or folder"
        raise UserError(f"--resume {resume}: {found}: expected a run folder or a checkpoint")
    if asked.is_file() and not path.exists():
        path, begun = asked, checkpoint.load(asked).config
    else:
        begun = read_tree(path, "the configuration of a run")
    begun = {key: value for key, value in begun.items() if not names_the_run(key)}
    return validate(overridden(begun, overrides, str(path)), str(path)), str(path)
