"""One epoch of training: steps without synchronization, watched for a loss that is not finite."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from en.assembly import Learner
from en.config import Config
from en.data import Batch, ImageLoader
from en.data.sampling import epoch_order, rank_batches
from en.distribution import Ranks
from en.errors import RunError
from en.loss_watch import LossWatch
from en.mixing import Mixing
from en.pixels import InputStep
from en.progress import Progress
from en.schedule import learning_rate, resolution

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EpochStats:
    """What an epoch of training was like.

    Attributes:
        loss: mean over the samples of all ranks, as trained (with label smoothing and mixing).
        lr: of the last step.
        images_per_second: over all ranks.
        data_wait: share of the time that rank 0 spent waiting for data, 0 to 1.
        seconds: wall time.
        resolution: side of the images, pixels.
    """

    loss: float
    lr: float
    images_per_second: float
    data_wait: float
    seconds: float
    resolution: int


def train_epoch(
    config: Config, learner: Learner, loader: ImageLoader, mixing: Mixing, prepare: InputStep, ranks: Ranks, epoch: int
) -> EpochStats:
    """Trains one epoch, counted from 0, a pure function of the learner's state, the configuration and the epoch.

    Raises: RunError for a loss that is not finite, naming step, learning rate and batch.
    """
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, ranks.rank]).generate_state(1)[0]))
    steps = loader.samples // config.train.batch_size
    size = resolution(config, epoch)
    watch, waited, started = LossWatch(prepare.device), 0.0, time.perf_counter()
    batches = loader.train_epoch(epoch, size)
    learner.forward.train()
    lr = 0.0
    with Progress(f"epoch {epoch + 1}/{config.train.epochs}", steps, ranks.is_first) as progress:
        for step in range(steps):
            lr = learning_rate(config, epoch + step / steps)
            for group in learner.optimizer.param_groups:
                group["lr"] = lr
            loss, seconds = train_step(config, learner, batches, mixing, prepare)
            waited += seconds
            watch.add(loss, step)
            detail = ""
            if (step + 1) % config.train.check_every == 0 or step + 1 == steps:
                refuse_bad_loss(config, watch, loader, ranks, epoch, steps)
                detail = f"loss {watch.mean(ranks, step + 1):.3f}"
            progress.advance(1, detail)
    seconds = time.perf_counter() - started
    mean_loss = watch.mean(ranks, steps)
    return EpochStats(mean_loss, lr, steps * config.train.batch_size / seconds, waited / seconds, seconds, size)


def train_step(
    config: Config, learner: Learner, batches: Iterator[Batch], mixing: Mixing, prepare: InputStep
) -> tuple[Tensor, float]:
    """One step over its accumulated micro-batches: the mean loss, on the device, and the seconds waited for data."""
    accumulation, waited = config.train.accumulation, 0.0
    total = torch.zeros((), device=prepare.device)
    for micro in range(accumulation):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        images, labels = mixing(*prepare(batch.images, batch.labels))
        with without_sync(learner.forward) if micro + 1 < accumulation else nullcontext():
            dtype = PRECISIONS[config.train.precision]
            with torch.autocast(prepare.device.type, dtype, enabled=dtype != torch.float32):
                logits = learner.forward(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.train.label_smoothing) / accumulation
            torch.autograd.backward(learner.scaler.scale(loss))
        total += loss.detach()
    if config.train.clip_norm is not None:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.model.parameters(), config.train.clip_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update(learner.model)
    return total, waited


def without_sync(model: nn.Module) -> AbstractContextManager[object]:
    """No exchange of gradients in the backward pass inside, where there are other ranks."""
    inner = getattr(model, "_orig_mod", model)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def refuse_bad_loss(config: Config, watch: LossWatch, loader: ImageLoader, ranks: Ranks, epoch: int, steps: int) -> None:
    """Raises RunError on every rank, worded by the rank that had it first, when a loss was not finite."""
    found = watch.bad_step(ranks)
    if found is None:
        return
    step, rank = found
    train = config.train
    batches = rank_batches(
        epoch_order(loader.samples, config.seed, epoch), train.batch_size, train.accumulation, rank, ranks.world_size
    )
    samples = np.concatenate(batches[step * train.accumulation : (step + 1) * train.accumulation])
    shown = ", ".join(map(str, samples[:8].tolist())) + (", ..." if len(samples) > 8 else "")
    lr = learning_rate(config, epoch + step / steps)
    raise RunError(
        f"the loss is not finite at step {step + 1}/{steps} of epoch {epoch + 1} on rank {rank}, learning rate {lr:.6g}, "
        f"batch of {len(samples)} training samples {shown}"
    )
