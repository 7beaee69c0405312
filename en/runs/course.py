"""The steps of a run: where it is evaluated, and where it ends."""

from dataclasses import dataclass
from typing import Any

from en.config.schema import Config
from en.errors import UserError
from en.runs.position import Position

DIGITS = 6  # of an epoch that is a fraction


@dataclass(frozen=True)
class Course:
    """A run in steps, counted over its epochs.

    Attributes:
        epoch_steps: of each epoch.
        epochs: in which the run ends, a fraction where it is told in steps (train.steps).
        every: steps between evaluations; None: one after each epoch. There is one at the end in any case.
        by_step: whether rows of logs are keyed by steps, because an evaluation need not end an epoch.
    """

    epoch_steps: int
    epochs: float
    every: int | None
    by_step: bool

    @property
    def steps(self) -> int:
        """Counts those of the whole run."""
        return round(self.epochs * self.epoch_steps)

    def done(self, at: Position) -> int:
        """Steps that are done at a position."""
        return at.epoch * self.epoch_steps + at.step

    def at(self, done: int) -> Position:
        """The position after so many steps, at the end of an epoch that of the next one's beginning."""
        epoch, step = divmod(done, self.epoch_steps)
        return Position(epoch=epoch, step=step)

    def next_evaluation(self, evaluated: int) -> int:
        """The steps after which the next evaluation is due."""
        every = self.every or self.epoch_steps
        return min((evaluated // every + 1) * every, self.steps)

    def epoch(self, done: int) -> float:
        """The epoch after so many steps: whole, or where rows are keyed by steps a fraction."""
        return round(done / self.epoch_steps, DIGITS) if self.by_step else done // self.epoch_steps

    def key(self, done: int) -> dict[str, Any]:
        """Returns the keys of a log's row that is written after so many steps."""
        return {"step": done, "epoch": self.epoch(done)} if self.by_step else {"epoch": self.epoch(done)}

    def words(self, done: int) -> str:
        """Says how far a run is after an evaluation: `epoch 3/90`, or `step 500/2000`."""
        return f"step {done}/{self.steps}" if self.by_step else f"epoch {done // self.epoch_steps}/{self.epochs}"


def course_of(config: Config, samples: int) -> Course:
    """The course of a run over so many training images. Raises UserError for a warm-up that is longer."""
    train, every = config.train, config.evaluation.every_steps
    epoch_steps = max(1, samples // train.batch_size)
    epochs = train.epochs if train.steps is None else train.steps / epoch_steps
    assert epochs is not None
    if config.schedule.warmup_epochs > epochs:
        warmup = f"schedule.warmup_epochs={config.schedule.warmup_epochs}"
        raise UserError(f"{warmup}: expected at most {epochs:.6g} epochs, which train.steps={train.steps} are")
    return Course(epoch_steps, epochs, every, train.steps is not None or every is not None)
