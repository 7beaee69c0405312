"""One epoch of training: steps without synchronization, watched for a loss that is not finite."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from en.config.schema import Config
from en.data import Batch, ImageLoader
from en.data.order import epoch_order, rank_batches
from en.data.to_device import ToDevice
from en.distributed.ranks import Ranks, sum_over_ranks
from en.errors import RunError
from en.progress import Progress
from en.tasks.mixing import Mixing
from en.training.learner import PRECISIONS, Learner
from en.training.record import LossWatch
from en.training.schedule import Schedule


@dataclass(frozen=True)
class EpochStats:
    """What an epoch of training was like.

    Attributes:
        loss: mean over the samples of all ranks, as trained (with label smoothing and mixing).
        lr: of the last step.
        images_per_second: over all ranks, since this process began; None when it had no step left.
        data_wait: share of the time that rank 0 spent waiting for data, 0 to 1.
        seconds: wall time, since this process began.
        resolution: side of the images, pixels.
    """

    loss: float
    lr: float
    images_per_second: float | None
    data_wait: float
    seconds: float
    resolution: int


@dataclass
class Trainer:
    """What training a step needs."""

    config: Config
    learner: Learner
    loader: ImageLoader
    mixing: Mixing
    to_device: ToDevice
    ranks: Ranks

    @property
    def schedule(self) -> Schedule:
        """Of the learning rate."""
        config = self.config
        return Schedule(peak=config.optim.lr, epochs=config.train.epochs, **config.schedule.model_dump())

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.loader.samples // self.config.train.batch_size


def train_epoch(
    trainer: Trainer, epoch: int, watch: LossWatch, first_step: int = 0, after_step: Callable[[int], None] = lambda done: None
) -> EpochStats:
    """Trains an epoch, counted from 0, from `first_step` on.

    A step is a pure function of the learner's state, the configuration and (epoch, step): whatever is drawn in it comes from a
    generator seeded by them and the rank.

    Args:
        watch: of the epoch's steps so far.
        after_step: called with the number of steps done.
    Raises: RunError for a loss or gradient that is not finite, naming step, learning rate and batch.
    """
    config, loader, ranks, steps = trainer.config, trainer.loader, trainer.ranks, trainer.steps
    size, schedule = config.training_resolution.at(epoch), trainer.schedule
    waited, started = 0.0, time.perf_counter()
    batches = loader.train_epoch(epoch, size, first_step)
    trainer.learner.forward.train()
    with Progress(f"epoch {epoch + 1}/{config.train.epochs}", steps, ranks.is_first) as progress:
        progress.advance(first_step)
        for step in range(first_step, steps):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, step, ranks.rank]).generate_state(1)[0]))
            for group in trainer.learner.optimizer.param_groups:
                group["lr"] = schedule.rate(epoch + step / steps)
            waited += train_step(trainer, batches, watch, epoch, step)
            detail = ""
            if (step + 1) % config.train.check_every == 0 or step + 1 == steps:
                refuse_bad_step(trainer, watch, epoch)
                detail = f"loss {watch.mean(ranks):.3f}"
            progress.advance(1, detail)
            after_step(step + 1)
    seconds = time.perf_counter() - started
    images = (steps - first_step) * config.train.batch_size
    speed = images / seconds if images else None
    lr = schedule.rate(epoch + (steps - 1) / steps)
    return EpochStats(watch.mean(ranks), lr, speed, waited / seconds, seconds, size)


def train_step(trainer: Trainer, batches: Iterator[Batch], watch: LossWatch, epoch: int, step: int) -> float:
    """One step over its accumulated micro-batches; the seconds waited for data."""
    config, learner, device = trainer.config.train, trainer.learner, trainer.to_device.device
    waited, total = 0.0, torch.zeros((), device=device)
    buffers = [buffer.clone() for buffer in learner.model.buffers()] if config.on_nonfinite == "skip" else []
    for micro in range(config.accumulation):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        for message in batch.damaged:
            print(f"warning: {message}: left out", file=sys.stderr, flush=True)
            watch.notes.append({"epoch": epoch + 1, "step": step + 1, "damaged": message})
        images, labels = trainer.mixing(*trainer.to_device(batch.images, batch.labels))
        with without_sync(learner.forward) if micro + 1 < config.accumulation else nullcontext():
            dtype = PRECISIONS[config.precision]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = learner.forward(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing) / config.accumulation
            torch.autograd.backward(learner.scaler.scale(loss))
        total += loss.detach()
    norm = gradient_norm(trainer)
    if config.on_nonfinite == "skip" and not finite_everywhere(total, norm):
        leave_out(trainer, watch, buffers, epoch, step)
        return waited
    if not update(learner) and trainer.ranks.is_first:
        watch.notes.append({"epoch": epoch + 1, "step": step + 1, "scaler_skipped": learner.scaler.get_scale()})
    watch.add(total, norm, step)
    return waited


def update(learner: Learner) -> bool:
    """Takes the optimizer's step; False when float16's scaler found its scale too large, and lowered it instead."""
    scaler = learner.scaler
    scale = scaler.get_scale()
    scaler.step(learner.optimizer)
    scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update(learner.model)
    return not scaler.is_enabled() or scaler.get_scale() >= scale


def gradient_norm(trainer: Trainer) -> Tensor | None:
    """The norm of the whole gradient, on the device, which is clipped to train.clip_norm, where that is set.

    None with float16's scaler, which looks at the gradients itself.
    """
    learner, limit = trainer.learner, trainer.config.train.clip_norm
    scaled = learner.scaler.is_enabled()
    parameters = [parameter for parameter in learner.model.parameters() if parameter.grad is not None]
    if limit is not None:
        learner.scaler.unscale_(learner.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        return None if scaled else norm
    if scaled:
        return None
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def finite_everywhere(loss: Tensor, norm: Tensor | None) -> bool:
    """Whether the losses of all ranks and the gradient, which is the same on all, are finite."""
    bad = sum_over_ranks((~loss.isfinite()).float())
    return not bool(bad) and (norm is None or bool(norm.isfinite()))


def leave_out(trainer: Trainer, watch: LossWatch, buffers: list[Tensor], epoch: int, step: int) -> None:
    """Undoes a step whose loss or gradient was not finite. Raises RunError for too many in a row."""
    learner = trainer.learner
    if learner.scaler.is_enabled():  # closes its account of the step
        if trainer.config.train.clip_norm is None:
            learner.scaler.unscale_(learner.optimizer)
        learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    watch.left_out += 1
    where = f"step {step + 1}/{trainer.steps} of epoch {epoch + 1}"
    if trainer.ranks.is_first:
        print(f"warning: the loss or gradient is not finite at {where}: left out", file=sys.stderr, flush=True)
        watch.notes.append({"epoch": epoch + 1, "step": step + 1, "left_out": "not finite"})
    limit = trainer.config.train.nonfinite_limit
    if watch.left_out >= limit:
        raise RunError(f"the loss or gradient was not finite {limit} times in a row (train.nonfinite_limit), up to {where}")


def without_sync(model: nn.Module) -> AbstractContextManager[object]:
    """No exchange of gradients in the backward pass inside, where there are other ranks."""
    inner = getattr(model, "_orig_mod", model)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def refuse_bad_step(trainer: Trainer, watch: LossWatch, epoch: int) -> None:
    """Raises RunError on every rank, worded by the rank that had it first, when a loss or gradient was not finite."""
    found = watch.first_bad(trainer.ranks)
    if found is None:
        return
    step, rank, what = found
    config, train, samples, steps = trainer.config, trainer.config.train, trainer.loader.samples, trainer.steps
    order = epoch_order(samples, config.seed, epoch)
    batches = rank_batches(order, train.batch_size, train.accumulation, rank, trainer.ranks.world_size)
    batch = np.concatenate(batches[step * train.accumulation : (step + 1) * train.accumulation])
    shown = ", ".join(map(str, batch[:8].tolist())) + (", ..." if len(batch) > 8 else "")
    lr = trainer.schedule.rate(epoch + step / steps)
    raise RunError(
        f"the {what} is not finite at step {step + 1}/{steps} of epoch {epoch + 1} on rank {rank}, learning rate {lr:.6g}, "
        f"batch of {len(batch)} training samples {shown}"
    )
