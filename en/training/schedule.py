"""Learning rate and resolution as pure functions of the real-valued epoch."""

import math

from en.config.schema import Config


def learning_rate(config: Config, epoch: float) -> float:
    """The rate at `epoch`, counted from 0.0 at the first step to train.epochs at the end (our choice: set at every step).

    Warm-up rises linearly from 0 to optim.lr. After it, cosine, linear and polynomial fall from optim.lr to final_lr over
    the epochs that are left; step multiplies by gamma at each of `steps`, counted from the start of training.
    """
    schedule, peak = config.schedule, config.optim.lr
    if epoch < schedule.warmup_epochs:
        return peak * epoch / schedule.warmup_epochs
    if schedule.name == "step":
        passed = sum(epoch >= step for step in schedule.steps)
        return peak * float(schedule.gamma**passed)
    left = config.train.epochs - schedule.warmup_epochs
    progress = min(1.0, (epoch - schedule.warmup_epochs) / left) if left else 1.0
    falls = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "polynomial": math.pow(1 - progress, schedule.power),
    }
    return schedule.final_lr + (peak - schedule.final_lr) * falls[schedule.name]


def resolution(config: Config, epoch: int) -> int:
    """Side of the training images in an epoch, pixels: data.resolution, or on the way there (progressive resizing).

    Rises linearly from start_resolution to data.resolution at until_epoch, rounded to `multiple`.
    """
    full, progressive = config.data.resolution, config.train.progressive
    if progressive is None or epoch >= progressive.until_epoch:
        return full
    start = progressive.start_resolution
    exact = start + (full - start) * epoch / progressive.until_epoch
    return min(full, max(start, progressive.multiple * round(exact / progressive.multiple)))


def training_sides(config: Config) -> list[int]:
    """Every side that the training images have in the course of a run, pixels, ascending."""
    progressive = config.train.progressive
    epochs = min(config.train.epochs, math.ceil(progressive.until_epoch) + 1) if progressive else 1
    return sorted({resolution(config, epoch) for epoch in range(epochs)})
