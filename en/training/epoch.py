"""One epoch of training, as a sequence of steps that wait for nothing but their data."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from en.config.schema import Config
from en.data import Batch, ImageLoader
from en.data.augmentation import Drawn
from en.data.labels import relabelling
from en.data.order import epoch_order, rank_batches
from en.data.to_device import ToDevice
from en.distributed.collectives import mean_over_ranks, sum_over_ranks
from en.distributed.ranks import Ranks
from en.errors import RunError, warn
from en.runs.course import course_of
from en.runs.position import Position
from en.training.learner import Learner
from en.training.record import EpochRecord
from en.training.schedule import schedule_of


def train_epoch(
    config: Config,
    learner: Learner,
    loader: ImageLoader,
    to_device: ToDevice,
    record: EpochRecord,
    start: Position,
    ranks: Ranks,
    until: int | None = None,
) -> Iterator[Position]:
    """Trains the steps that are left of an epoch, or those up to one of them.

    A step is a pure function of the learner's state, the configuration and its position: whatever is drawn in it comes
    from a generator that these and the rank seed.

    Args:
        record: of the steps since the last evaluation.
        start: where the epoch is resumed.
        until: steps of the epoch that are done at the end; None: all.
    Yields: the position after each step.
    Raises: RunError for too many steps in a row that are left out (train.on_nonfinite=skip).
    """
    course = course_of(config, loader.samples)
    schedule, steps = schedule_of(config, course.epochs), course.epoch_steps
    # The loader skips what was done before: the order of samples is known from the seed and the epoch.
    batches = loader.train_epoch(start.epoch, config.training_resolution.at(start.epoch), start.step)
    learner.forward.train()
    here = start
    while here.step < (steps if until is None else until):
        # Seed, before the first batch: mixing, dropout and stochastic depth draw from here on.
        torch.manual_seed(here.seed(config.seed, ranks.rank))
        done = here.after_step()
        # Keep running averages where a step may be left out: the forward pass changes them before its loss is known.
        kept = learner.copy_buffers() if config.train.on_nonfinite == "skip" else None
        # Forward and backward, micro-batch by micro-batch; the last one shares the gradient with the other ranks.
        loss = accumulate(config, learner, loader, batches, to_device, record, done)
        # Unscale and clip the gradient; its norm is the same on every rank.
        norm = learner.gradient_norm()
        if kept is not None and not finite_everywhere(loss, norm):
            # Leave the step out: put back what it has changed, and end the run after too many in a row.
            learner.undo(kept)
            leave_out(config, record, done, steps, ranks)
        else:
            # Update weights and averages, by the rate of the step's beginning.
            learner.step(schedule.rate(here.time(steps)))
            if learner.scale_was_lowered and ranks.is_first:
                record.note(done, scaler_skipped=learner.scaler.get_scale())
            # Record the loss on the device: whoever looks at the record waits for it, this loop does not.
            record.add(loss, norm, done)
        # Hand over: the run may evaluate, write a checkpoint or stop here, between two steps.
        yield done
        here = done


def steps_of(config: Config, loader: ImageLoader) -> int:
    """Steps of an epoch."""
    return loader.samples // config.train.batch_size


def accumulate(
    config: Config,
    learner: Learner,
    loader: ImageLoader,
    batches: Iterator[Batch],
    to_device: ToDevice,
    record: EpochRecord,
    done: Position,
) -> Tensor:
    """Takes the gradient of a step's loss, micro-batch by micro-batch. Returns: this rank's part of the loss, a scalar.

    The mean is taken over all that counts in the step, on whichever rank and in whichever micro-batch it is.
    """
    task, micro_batches, labels = config.task, config.train.accumulation, relabelling(loader)
    total = torch.zeros((), device=to_device.device)
    counted: list[Tensor] = []
    for micro in range(micro_batches):
        batch = record.next_batch(batches)
        for message in batch.damaged:
            warn(f"{message}: left out")
            record.note(done, damaged=message)
        images, targets = to_network(config, loader, to_device, batch, done.epoch)
        # Before the forward pass, which may change them in place.
        record.keep(images, to_device.pixels)
        with learner.sharing_gradients(last=micro + 1 == micro_batches):
            outputs = learner(images)
            losses, count = task.loss(outputs, targets)
            if labels is not None and (predicted := task.predicted_classes(outputs)) is not None:
                record.see(predicted, batch.samples, labels)
            if isinstance(count, Tensor):
                # It depends on the targets, and is known of the whole step only after the last micro-batch.
                counted.append(count / len(images) / micro_batches)
                count = len(images)
            loss = losses / count / micro_batches
            learner.backward(loss)
        total += loss.detach()
    if counted:
        # So far each image counted once. Nothing counted at all means no loss and no gradient.
        share = mean_over_ranks(torch.stack(counted).sum()).clamp(min=torch.finfo(torch.float32).tiny)
        learner.divide_gradients(share)
        total /= share
    return total


def to_network(
    config: Config, loader: ImageLoader, to_device: ToDevice, batch: Batch, epoch: int
) -> tuple[Tensor, Tensor]:
    """A batch as the network and the loss take it: moved to the device, distorted, normalized, augmented."""
    images, targets = to_device.move(batch.images, batch.targets)
    drawn = Drawn(config.seed, epoch, batch.samples.numpy())
    images = config.task.distort(images, drawn, to_device.padding)
    return config.task.augment(to_device.normalize(images), targets, len(loader.classes))


def finite_everywhere(loss: Tensor, norm: Tensor | None) -> bool:
    """Tells whether the losses of all ranks and the gradient, which is the same on all, are finite."""
    bad = sum_over_ranks((~loss.isfinite()).float())
    return not bool(bad) and (norm is None or bool(norm.isfinite()))


def leave_out(config: Config, record: EpochRecord, done: Position, steps: int, ranks: Ranks) -> None:
    """Records a step whose loss or gradient was not finite. Raises RunError for too many in a row."""
    record.leave_out()
    if ranks.is_first:
        warn(f"the loss or gradient is not finite at {done.words(steps)}: left out")
        record.note(done, left_out="not finite")
    limit = config.train.nonfinite_limit
    if record.left_out >= limit:
        where = f"(train.nonfinite_limit), up to {done.words(steps)}"
        raise RunError(f"the loss or gradient was not finite {limit} times in a row {where}")


def refuse_bad_step(config: Config, record: EpochRecord, loader: ImageLoader, epoch: int, ranks: Ranks) -> None:
    """Raises RunError, the same on every rank, when a loss or gradient was not finite."""
    found = record.first_bad(ranks)
    if found is None:
        return
    step, rank, what = found
    train, course = config.train, course_of(config, loader.samples)
    steps = course.epoch_steps
    batches = rank_batches(
        epoch_order(loader.samples, config.seed, epoch), train.batch_size, train.accumulation, rank, ranks.world_size
    )
    batch = np.concatenate(batches[(step - 1) * train.accumulation : step * train.accumulation])
    named = ", ".join(map(str, batch[:8].tolist())) + (", ..." if len(batch) > 8 else "")
    lr = schedule_of(config, course.epochs).rate(Position(epoch=epoch, step=step - 1).time(steps))
    raise RunError(
        f"the {what} is not finite at {Position(epoch=epoch, step=step).words(steps)} on rank {rank}, "
        f"learning rate {lr:.6g}, batch of {len(batch)} training samples {named}"
    )
