"""A whole training run: set up, epochs with evaluation, logs and checkpoints."""

import sys
from dataclasses import asdict
from pathlib import Path

from en import checkpoint
from en.assembly import Learner, build_learner, build_network, check_batch_size, open_loaders
from en.config import Config
from en.data import worker_deaths_told
from en.distribution import Ranks, average_buffers, choose_device, process_group
from en.epoch import EpochStats, train_epoch
from en.errors import UserError
from en.evaluation import Scores, evaluate, mean_ratios
from en.mixing import Mixing
from en.models import complexity
from en.norm import record_ratios
from en.pixels import InputStep
from en.run_folder import Ratios, RunFolder, hardware, new_run_path

FIXED = ("model", "norm", "optim", "schedule", "seed")  # what a resumed run has to share with its beginning


class Run:
    """One training run as this rank sees it; rank 0 also writes the run folder.

    Args:
        config, config_path: the resolved configuration and the file that it came from.
        resume: a run folder to go on with from its last finished epoch; None for a new run.
    Raises: UserError for anything that can be known to be wrong before a device is touched.
    """

    def __init__(self, config: Config, config_path: str, resume: str | None) -> None:
        self.config, self.ranks, self.resume = config, Ranks.from_environment(), resume
        self.saved = checkpoint.load(Path(resume) / "last.pt") if resume is not None else None
        self.loaders = open_loaders(config, self.ranks, ("train", "val"))
        self.classes = self.loaders["train"].classes
        check_batch_size(config, self.ranks, self.loaders["train"].samples)
        if self.saved and resume is not None:
            check_resumable(self.saved, config, self.classes, resume)
        self.model = build_network(config, len(self.classes))
        self.cost = complexity(self.model, config.eval_resolution)
        self.device = choose_device(config.device, self.ranks)
        self.epochs_done, self.best = 0, {"top1": -1.0, "epoch": 0}
        self.folder: RunFolder | None = None
        if self.ranks.is_first:
            self.folder = RunFolder(Path(resume) if resume is not None else new_run_path(config, config_path))

    def train(self) -> None:
        """Trains to the last epoch and leaves the run folder complete."""
        if self.saved:
            self.epochs_done, self.best = self.saved["epoch"], self.saved["best"]
        if self.folder:
            self.folder.start(self.config, self.ranks, self.device, self.epochs_done)
            print(self.headline(), file=sys.stderr, flush=True)
        with worker_deaths_told(), process_group(self.ranks, self.device):
            learner = build_learner(self.config, self.model, self.device, self.ranks)
            if self.saved:
                restore(learner, self.saved, Path(str(self.resume)) / "last.pt")
            prepare, mixing = InputStep(self.config, self.device), Mixing(self.config, len(self.classes))
            for epoch in range(self.epochs_done, self.config.train.epochs):
                stats = train_epoch(self.config, learner, self.loaders["train"], mixing, prepare, self.ranks, epoch)
                for network in learner.networks():
                    average_buffers(network)
                scored = learner.networks()[-1]
                with record_ratios(scored) as record:
                    scores = evaluate(scored, self.loaders["val"], self.config.eval_resolution, prepare, self.ranks.is_first)
                ratios = mean_ratios(scored, record)
                self.epochs_done = epoch + 1
                if self.folder:
                    self.finish_epoch(self.folder, learner, stats, scores, ratios)
        for loader in self.loaders.values():
            loader.close()

    def headline(self) -> str:
        """The run in one line."""
        cost, config = self.cost, self.config
        folder = self.folder.path if self.folder else ""
        return (
            f"{config.model.name} with {config.norm.name}: {cost.params:,} parameters, {cost.gmacs:.3g} + "
            f"{cost.norm_gmacs:.2g} GMACs at {config.eval_resolution} pixels; {self.loaders['train'].samples} training images, "
            f"{len(self.classes)} classes; {hardware(self.ranks, self.device)}; {self.ranks.world_size} ranks; {folder}"
        )

    def finish_epoch(self, folder: RunFolder, learner: Learner, stats: EpochStats, scores: Scores, ratios: Ratios) -> None:
        """Logs an epoch and saves its checkpoints."""
        is_best = scores.top1 > self.best["top1"]
        if is_best:
            self.best = {"top1": scores.top1, "epoch": self.epochs_done}
        row = {"epoch": self.epochs_done, "train_loss": stats.loss, **scores.as_dict(), "lr": stats.lr}
        row |= {"images_per_second": stats.images_per_second, "data_wait": stats.data_wait, "seconds": stats.seconds}
        folder.write_epoch({**row, "resolution": stats.resolution}, ratios)
        state = snapshot(learner, self.config, self.classes, self.epochs_done, self.best)
        checkpoint.save(state, folder.path / "last.pt")
        if is_best:
            checkpoint.save(state, folder.path / "best.pt")
        folder.write_summary(self.summary(stats, scores))
        print(
            f"epoch {self.epochs_done}/{self.config.train.epochs}: loss {stats.loss:.4f}, top-1 {scores.top1:.2f} %, top-5 "
            f"{scores.top5:.2f} %, {stats.images_per_second:.0f} images/s, waited {100 * stats.data_wait:.0f} % for data",
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


def snapshot(learner: Learner, config: Config, classes: list[str], epoch: int, best: dict[str, float]) -> checkpoint.Checkpoint:
    """Everything that the next epoch depends on, in plain values and tensors."""
    return {
        "model": learner.model.state_dict(),
        "ema": learner.ema.module.state_dict() if learner.ema else None,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "epoch": epoch,
        "best": best,
        "config": config.model_dump(),
        "classes": classes,
    }


def restore(learner: Learner, saved: checkpoint.Checkpoint, path: Path) -> None:
    """Puts a checkpoint's state into a learner. Raises UserError when it does not fit."""
    checkpoint.load_weights(learner.model, saved["model"], path)
    if learner.ema:
        checkpoint.load_weights(learner.ema.module, saved["ema"] or saved["model"], path)
    try:
        learner.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:
            learner.scaler.load_state_dict(saved["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the optimizer's state of this configuration: {error}") from error


def check_resumable(saved: checkpoint.Checkpoint, config: Config, classes: list[str], resume: str) -> None:
    """Raises UserError when a run would go on with another task than it began with."""
    if saved["classes"] != classes:
        raise UserError(f"data.root={config.data.root}: expected the classes that --resume {resume} was trained on")
    now = config.model_dump()
    for section in FIXED:
        then = saved["config"].get(section)
        if now[section] != then:
            raise UserError(f"{section}={now[section]}: expected what --resume {resume} began with, {then}")
