"""The learning rate as a pure function of the real-valued epoch."""

import math
from dataclasses import dataclass

from en.config.schema import Config
from en.runs.course import course_of
from en.runs.position import Position


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes (our choice: at every step).

    Attributes:
        name: step, cosine, linear or polynomial.
        peak: the rate after warm-up.
        epochs: of the whole training.
        warmup_epochs: from 0 to the peak, linearly.
        steps, gamma: of step: epochs, counted from the start of training, at which the rate is multiplied by gamma.
        power: of polynomial.
        final_lr: at the end, except with step.
    """

    name: str
    peak: float
    epochs: float
    warmup_epochs: float
    steps: list[float]
    gamma: float
    power: float
    final_lr: float

    def rate(self, epoch: float) -> float:
        """The rate at `epoch`, counted from 0.0 at the first step to `epochs` at the end.

        Cosine, linear and polynomial fall from the peak to final_lr over the epochs that are left after warm-up.
        """
        if epoch < self.warmup_epochs:
            return self.peak * epoch / self.warmup_epochs
        if self.name == "step":
            passed = sum(epoch >= step for step in self.steps)
            return self.peak * float(self.gamma**passed)
        left = self.epochs - self.warmup_epochs
        progress = min(1.0, (epoch - self.warmup_epochs) / left) if left else 1.0
        falls = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "polynomial": math.pow(1 - progress, self.power),
        }
        return self.final_lr + (self.peak - self.final_lr) * falls[self.name]


def rate_remarks(then: Config, now: Config, samples: int, at: Position) -> list[str]:
    """Says what the learning rate becomes where a resumed run has another length, and falls over that.

    Args:
        then, now: the configurations of the run so far, and from here on.
        samples: training images.
        at: where the run goes on.
    """
    before, after = (course_of(config, samples) for config in (then, now))
    if before.epochs == after.epochs or now.schedule.name == "step":
        return []
    rates = [
        schedule_of(config, course.epochs).rate(at.time(course.epoch_steps))
        for config, course in ((then, before), (now, after))
    ]
    return [
        f"the learning rate goes on at {rates[1]:.4g} (was to be {rates[0]:.4g}): schedule.name={now.schedule.name} "
        f"falls over {after.epochs:.6g} epochs (was {before.epochs:.6g})"
    ]


def schedule_of(config: Config, epochs: float | None = None) -> Schedule:
    """The configured schedule.

    Args:
        epochs: of the whole training; None: train.epochs.
    """
    whole = config.train.epochs if epochs is None else epochs
    assert whole is not None
    return Schedule(peak=config.optim.lr, epochs=whole, **config.schedule.model_dump())
