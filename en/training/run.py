"""A whole training run: set up, epochs with evaluation, logs and checkpoints."""

import sys
from dataclasses import asdict
from pathlib import Path

from en.build import build_network, check_batch_size, open_loaders
from en.config.schema import Config
from en.data import naming_dead_workers
from en.data.to_device import ToDevice
from en.distributed.liveness import naming_silent_ranks
from en.distributed.ranks import (
    Ranks,
    average_buffers,
    choose_device,
    gather,
    only_deterministic,
    process_group,
    refuse_differences,
    refuse_drift,
)
from en.distributed.vote import Vote
from en.errors import RESUME_ME, Stopped, UserError
from en.evaluation.evaluate import Scores, evaluate, mean_ratios
from en.models import complexity
from en.norm import record_ratios
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint
from en.runs.folder import Ratios, Row, RunFolder, refuse_used
from en.runs.provenance import circumstances, hardware, provenance, ranks_facts
from en.runs.start import check_resumable, describe_data, find_start, resumption, told
from en.tasks.mixing import Mixing
from en.training.epoch import EpochStats, Trainer, refuse_bad_step, train_epoch
from en.training.learner import build_learner
from en.training.record import LossWatch
from en.training.signals import StopRequest


class Run:
    """One training run as this rank sees it; rank 0 also writes the run folder.

    Args:
        config, config_path: the resolved configuration, config.resume included, and the file that it came from.
        request: what tells of a signal to stop.
    Raises: UserError for anything that can be known to be wrong before a device is touched.
    """

    def __init__(self, config: Config, config_path: str, request: StopRequest) -> None:
        self.config, self.ranks, self.request = config, Ranks.from_environment(), request
        if config.deterministic:
            only_deterministic()
        self.path, self.origin, self.saved = find_start(config, config_path)
        if self.ranks.is_first and not self.saved and config.resume is None:
            refuse_used(self.path)
        self.loaders = open_loaders(config, self.ranks, ("train", "val"))
        self.classes, self.data = (
            self.loaders["train"].classes,
            describe_data(config.data.loader, self.loaders["train"], self.loaders["val"]),
        )
        check_batch_size(config, self.ranks, self.loaders["train"].samples)
        if self.saved:
            check_resumable(self.saved, config, self.data, self.classes, self.origin)
        self.model = build_network(config, len(self.classes))
        try:
            self.cost = complexity(self.model, config.eval_resolution)
        except RuntimeError as error:
            size, reason = config.eval_resolution, str(error).splitlines()[0]
            raise UserError(f"data.resolution={size}: expected a size that {config.model.name} takes: {reason}") from error
        self.device = choose_device(config.device, self.ranks)
        self.epochs_done = self.saved.epoch if self.saved else 0
        self.best: checkpoint.Best = self.saved.best if self.saved else {"top1": -1.0, "epoch": 0}
        self.folder: RunFolder | None = None

    def train(self) -> None:
        """Trains to the last epoch and leaves the run folder complete.

        Raises: Stopped after a signal, with a checkpoint written; RunError for what ends a run otherwise.
        """
        config, ranks = self.config, self.ranks
        with naming_dead_workers(), process_group(ranks, self.device, config.distributed.timeout_s) as group:
            self.group, self.vote = group, Vote(group)
            with naming_silent_ranks(ranks, group):
                # From here on a signal waits for a checkpoint. Rank 0 touches the folder only once every rank has come this far.
                self.request.defer()
                refuse_differences(self.facts(), group)
                if self.asked(wait=True):
                    raise Stopped(f"stopped by {self.asked_by()} before the run began: nothing was written (exit code {RESUME_ME})")
                self.circumstances = circumstances(ranks, self.device)
                learner = build_learner(config, self.model, self.device, ranks)
                to_device = ToDevice(config.data.mean, config.data.std, config.train.channels_last, self.device)
                mixing = Mixing(config.train.mixup, config.train.cutmix, len(self.classes))
                self.trainer = Trainer(config, learner, self.loaders["train"], mixing, to_device, ranks)
                watch, first_step = LossWatch(self.device), 0
                if self.saved:
                    # Before the folder is touched: a checkpoint that does not fit leaves it as it was.
                    learner.load_state_dict(self.saved, ranks, self.origin)
                    if first_step := self.saved.step:
                        watch.restore([state["watch"] for state in self.saved.ranks], ranks)
                if ranks.is_first:
                    self.folder = self.begin(RunFolder(self.path))
                    if self.saved:
                        self.take_up(self.folder, self.saved)
                self.saved = None
                for epoch in range(self.epochs_done, config.train.epochs):
                    self.train_one(epoch, watch, first_step)
                    watch, first_step = LossWatch(self.device), 0
                    if epoch + 1 < config.train.epochs and self.asked(wait=True):
                        raise self.stopped(epoch + 1, 0)
        for loader in self.loaders.values():
            loader.close()

    def facts(self) -> Row:
        """What has to be the same on all ranks before they train together."""
        at = {"epoch": self.epochs_done, "step": self.saved.step, "digest": self.saved.digest} if self.saved else None
        return ranks_facts(self.config, self.data) | {"checkpoint": at}

    def begin(self, folder: RunFolder) -> RunFolder:
        """Writes what is about to run into the folder, and says it."""
        start = provenance(self.config.seed, self.ranks, self.device)
        resumed = resumption(self.saved, self.config, self.circumstances) if self.saved else {}
        folder.start(self.config.model_copy(update={"resume": None}), self.epochs_done, start | resumed)
        for line in [self.headline(), *(told(resumed) if resumed else [])]:
            print(line, file=sys.stderr, flush=True)
        return folder

    def train_one(self, epoch: int, watch: LossWatch, first_step: int) -> None:
        """Trains an epoch from a step on, evaluates, logs it and saves a checkpoint."""
        learner, every = self.trainer.learner, self.config.checkpoint.every_steps
        steps = self.trainer.steps

        def after_step(done: int) -> None:
            stop = self.asked(wait=done == steps)
            due = every is not None and (epoch * steps + done) % every == 0 and done < steps
            if stop or due:
                refuse_bad_step(self.trainer, watch, epoch)
                self.save(epoch, done, watch)
            if stop:
                raise self.stopped(epoch, done)

        stats = train_epoch(self.trainer, epoch, watch, first_step, after_step)
        for network in learner.networks():
            average_buffers(network)
        refuse_drift(learner.networks(), self.ranks, self.group)
        scored = learner.networks()[-1]
        with record_ratios(scored) as record:
            scores = evaluate(scored, self.loaders["val"], self.config.eval_resolution, self.trainer.to_device, self.ranks.is_first)
        ratios = mean_ratios(scored, record)
        notes = [note for state in gather(watch.notes, self.group) for note in state]
        self.epochs_done = epoch + 1
        if scores.top1 > self.best["top1"]:
            self.best = {"top1": scores.top1, "epoch": self.epochs_done}
        if self.folder:
            self.log_epoch(self.folder, stats, scores, ratios, notes)
        summary = self.summary(stats, scores)
        path = self.save(self.epochs_done, 0, None, summary)
        if self.folder and path:
            self.publish(self.folder, path, summary)

    def publish(self, folder: RunFolder, path: Path, summary: Row) -> None:
        """Makes the checkpoint of a finished epoch last.pt, and best.pt where it is, and tells of it in summary.json."""
        with folder.writing():
            checkpoint.link(path, folder.path / "last.pt")
            if self.best["epoch"] == self.epochs_done:
                checkpoint.link(path, folder.path / "best.pt")
        folder.write_summary(summary)

    def save(self, epoch: int, step: int, watch: LossWatch | None, summary: Row | None = None) -> Path | None:
        """Writes a checkpoint, all ranks together, and keeps the newest; rank 0 is told where it lies."""
        learner = self.trainer.learner
        ranks = [] if watch is None else gather({"watch": watch.state(), "buffers": learner.buffers()}, self.group)
        if self.folder is None:
            return None
        state = Checkpoint(
            **learner.state_dict(),
            epoch=epoch,
            step=step,
            ranks=ranks,
            best=self.best,
            summary=summary,
            config=self.config.model_dump(),
            classes=self.classes,
            data=self.data,
            circumstances=self.circumstances,
        )
        path = checkpoint.step_path(self.folder.path, epoch, step)
        with self.folder.writing():
            checkpoint.save(state, path)
            checkpoint.remove(checkpoint.step_paths(self.folder.path)[self.config.checkpoint.keep :])
        return path

    def take_up(self, folder: RunFolder, saved: Checkpoint) -> None:
        """Makes the checkpoint that is gone on with the newest of the folder, and does again what a kill may have left undone."""
        here = checkpoint.step_path(folder.path, saved.epoch, saved.step)
        with folder.writing():
            checkpoint.link(Path(self.origin), here)
            folder.drop_later(saved.epoch, saved.best)
        if saved.summary is not None:
            self.publish(folder, here, saved.summary | {"epochs": self.config.train.epochs})
        with folder.writing():
            checkpoint.remove(path for path in checkpoint.step_paths(folder.path) if path > here)

    def stopped(self, epoch: int, step: int) -> Stopped:
        """What is said when a signal ends the run here."""
        where = f"after step {step}/{self.trainer.steps} of epoch {epoch + 1}" if step else f"after epoch {epoch}"
        path = self.folder.path if self.folder else ""
        return Stopped(f"stopped by {self.asked_by()} {where}, checkpoint written: --resume {path} goes on (exit code {RESUME_ME})")

    def asked(self, wait: bool) -> bool:
        """Whether all ranks stop here, because one was asked to (see Vote.agreed)."""
        return self.vote.agreed(bool(self.request.signal), wait)

    def asked_by(self) -> str:
        return self.request.signal or "a signal to another rank"

    def headline(self) -> str:
        """The run in one line."""
        cost, config = self.cost, self.config
        return (
            f"{config.model.name} with {config.norm.name}: {cost.params:,} parameters, {cost.gmacs:.3g} + "
            f"{cost.norm_gmacs:.2g} GMACs at {config.eval_resolution} pixels; {self.loaders['train'].samples} training images, "
            f"{len(self.classes)} classes; {hardware(self.ranks, self.device)}; {self.ranks.world_size} ranks; {self.path}"
        )

    def log_epoch(self, folder: RunFolder, stats: EpochStats, scores: Scores, ratios: Ratios, notes: list[Row]) -> None:
        """Logs an epoch."""
        row: Row = {"epoch": self.epochs_done, "train_loss": stats.loss, **scores.as_dict(), "lr": stats.lr}
        row |= {"images_per_second": stats.images_per_second, "data_wait": stats.data_wait, "seconds": stats.seconds}
        row |= {kind: sum(kind in note for note in notes) for kind in ("damaged", "left_out", "scaler_skipped")}
        folder.write_epoch({**row, "resolution": stats.resolution}, ratios, notes)
        print(
            f"epoch {self.epochs_done}/{self.config.train.epochs}: loss {stats.loss:.4f}, top-1 {scores.top1:.2f} %, top-5 "
            f"{scores.top5:.2f} %, {stats.images_per_second or 0:.0f} images/s, waited {100 * stats.data_wait:.0f} % for data",
            file=sys.stderr,
            flush=True,
        )

    def summary(self, stats: EpochStats, scores: Scores) -> dict[str, object]:
        """What reports need to know of a run, up to its last finished epoch."""
        config = self.config
        return {
            "model": config.model.name,
            "norm": config.norm.name,
            "norm_options": config.norm.options,
            "dataset": self.loaders["train"].name,
            "classes": len(self.classes),
            "seed": config.seed,
            "epochs": config.train.epochs,
            "epochs_done": self.epochs_done,
            **scores.as_dict(),
            "best_top1": self.best["top1"],
            "best_epoch": self.best["epoch"],
            **asdict(self.cost),
            "images_per_second": stats.images_per_second,
            "resolution": config.data.resolution,
            "eval_resolution": config.eval_resolution,
            "batch_size": config.train.batch_size,
            "world_size": self.ranks.world_size,
            "hardware": hardware(self.ranks, self.device),
        }
