"""A whole training run: set-up, epochs, evaluation, logs and checkpoints."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from en.build import (
    build_network,
    build_to_device,
    check_batch_size,
    check_batch_statistics,
    freeze_network,
    open_loaders,
    workers_of,
)
from en.config.reading import validate
from en.config.schema import Config
from en.config.section import first_problem
from en.data import naming_dead_workers
from en.data.labels import relabelling
from en.distributed.agreement import refuse_differences, refuse_drift
from en.distributed.buffers import average_buffers
from en.distributed.collectives import gather
from en.distributed.device import choose_device, only_deterministic
from en.distributed.group import process_group
from en.distributed.liveness import naming_silent_ranks
from en.distributed.ranks import Ranks
from en.distributed.vote import Vote
from en.errors import RESUME_ME, Stopped, UserError
from en.evaluation.evaluate import evaluate
from en.evaluation.examples import Examples
from en.evaluation.observers import OBSERVERS, watching
from en.models import complexity
from en.norm.built import in_one, layers_as_built
from en.norm.trained_maps import mixed_layers
from en.progress import Progress, tell
from en.runs.board import Observations
from en.runs.by_class import ByClass, Entries, Findings
from en.runs.contents import Best, Checkpoint, position_of
from en.runs.course import course_of
from en.runs.folder import RunFolder
from en.runs.position import Position
from en.runs.provenance import circumstances, hardware, provenance, ranks_facts, thread_remarks
from en.runs.resume import describe_data, differences, keep_threads
from en.runs.row import INCIDENTS, Row, told
from en.runs.scores import Scores
from en.runs.start import FromWeights, Resumed, Start, find_start
from en.runs.summary import Summary
from en.size import as_key, in_words
from en.training.epoch import refuse_bad_step, train_epoch
from en.training.initial import initialize, some_images
from en.training.learner import build_learner
from en.training.record import EpochRecord
from en.training.schedule import rate_remarks, schedule_of
from en.training.signals import StopRequest


class TrainingRun:
    """One training run as this rank sees it; rank 0 also writes the run folder.

    Args:
        config, config_path: the resolved configuration, config.resume included, and the file that it came from.
        request: reports a signal to stop.
        drop_later: whether steps after the checkpoint that the run resumes from may be lost.
    Raises: UserError for anything that can be known to be wrong before a device is touched.
    """

    def __init__(self, config: Config, config_path: str, request: StopRequest, drop_later: bool = False) -> None:
        self.config, self.task, self.ranks, self.request = config, config.task, Ranks.from_environment(), request
        if config.deterministic:
            only_deterministic()
        self.start: Start = find_start(config, config_path, drop_later)
        keep_threads(self.start.circumstances)
        loaders = open_loaders(config, self.ranks, ("train", "val"))
        self.train_images, self.val_images = loaders["train"], loaders["val"]
        self.relabelling = relabelling(self.train_images)
        self.data = describe_data(config.data.loader, self.train_images, self.val_images)
        self.classes = self.train_images.classes
        check_batch_size(config, self.ranks, self.train_images.samples)
        self.course = course_of(config, self.train_images.samples)
        self.start.check(config, self.data, self.classes)
        self.model = build_network(config, len(self.classes))
        self.start.rebuild(self.model, config)
        self.initial = initialize(self.model, config, self.classes) if isinstance(self.start, FromWeights) else None
        # Before anything is frozen, whose parameters are the network's all the same.
        self.cost = complexity(self.model, config.eval_resolution)
        self.frozen = freeze_network(config, self.model)
        check_batch_statistics(config, self.ranks, self.model)
        self.device = choose_device(config.device, self.ranks)
        self.best: Best | None = self.start.best(config, self.data)

    def train(self) -> None:
        """Trains to the last step and leaves the run folder complete.

        Raises: Stopped after a signal, with a checkpoint written; RunError for what ends a run otherwise.
        """
        timeout_s = self.config.distributed.timeout_s
        with (
            naming_dead_workers(),
            process_group(self.ranks, self.device, timeout_s) as self.group,
            naming_silent_ranks(self.ranks, self.group),
        ):
            self.vote = Vote(self.group)
            # From here on a signal waits for a checkpoint.
            self.request.defer()
            # Before anything is written: rank 0 touches the folder only once every rank has come this far, alike.
            refuse_differences(self.facts(), self.group)
            if self.asked_to_stop(wait=True):
                raise Stopped(
                    f"stopped by {self.asked_by()} before the run began: nothing was written (exit code {RESUME_ME})"
                )
            self.check_summary()
            position, record = self.begin()
            if self.course.done(self.evaluated) >= self.course.steps and self.ranks.is_first:
                tell(self.finished())
            while self.course.done(self.evaluated) < self.course.steps:
                position, record = self.train_one(position, record), self.new_record()
                if self.course.done(position) < self.course.steps and self.asked_to_stop(wait=True):
                    raise self.stopped(position)
        self.folder.close()
        self.train_images.close()
        self.val_images.close()

    def facts(self) -> dict[str, Any]:
        """Collects what has to be the same on all ranks before they train together."""
        read = {"checkpoint": self.start.fact, "init": self.initial.digest if self.initial else None}
        return ranks_facts(self.config, self.data, self.made_by()) | read

    def made_by(self) -> dict[str, str | None]:
        """Names the libraries that make the network's images, with their versions."""
        return dict(self.train_images.made_by) | self.task.augmented_by

    def check_summary(self) -> None:
        """Raises UserError, on every rank, for what summary.json would not hold: not after an epoch of it."""
        try:
            self.summary(0, Row(), {"score": 0.0, "epoch": 0})
        except ValidationError as error:
            refusal = UserError(f"{self.config.data.root}: summary.json: {first_problem(error, str)}")
            refusal.common = True
            raise refusal from error

    def begin(self) -> tuple[Position, EpochRecord]:
        """Puts the network on its device, in the state that the run begins in, and lays out the folder.

        Returns: where training begins, and the record of the current epoch.
        """
        config, ranks, start = self.config, self.ranks, self.start
        self.circumstances = circumstances(ranks, self.device, self.made_by(), config.train.compile)
        self.learner = build_learner(config, self.model, self.device, ranks)
        self.to_device = build_to_device(config, self.device)
        record, self.evaluated, remarks = self.new_record(), start.evaluated, thread_remarks(self.device)
        match start:
            case Resumed(origin=origin, saved=saved):
                # Before the folder is touched: a checkpoint that does not fit leaves it as it was.
                self.learner.load_state_dict(saved, ranks, origin)
                if saved.ranks:
                    record.load_state_dict([state["losses"] for state in saved.ranks], ranks)
                then = validate(saved.config, str(origin))
                remarks += rate_remarks(then, config, self.train_images.samples, saved.position)
        if self.initial and self.initial.before and ranks.is_first:
            size = config.training_resolution.full
            self.initial.compare(self.task, self.model, some_images(self.val_images, size, self.to_device))
        self.folder = RunFolder(start.folder, writes=ranks.is_first, observers=[each.name for each in OBSERVERS])
        own = start.record(config, self.data, self.circumstances)
        remarks = [*self.frozen.lines(), *self.label_remarks(), *remarks]
        remarks = [*(self.initial.lines() if self.initial else []), *remarks]
        for line in [self.headline(), *remarks, *differences(own)] if ranks.is_first else []:
            tell(line)
        start.enter(self.folder)
        this_start = provenance(config.seed, ranks, self.device, workers_of(config, ranks), self.circumstances) | own
        this_start |= self.initial.row() if self.initial else {}
        this_start |= {"labels": self.relabelling.sidecar.facts()} if self.relabelling else {}
        begun, evaluated = config.model_copy(update={"resume": None}), self.course.done(self.evaluated)
        done = self.course.done(start.position)
        self.folder.start(begun, self.course, evaluated, done, this_start, start.history)
        start.settle(self.folder, self.course.epochs)
        # The checkpoint's weights are in the network now: no need to keep them twice.
        del self.start, self.initial
        return start.position, record

    def train_one(self, start: Position, record: EpochRecord) -> Position:
        """Trains from a position to the next evaluation, evaluates, logs it and saves checkpoints.

        Args:
            record: of the steps since the last evaluation.
        Returns: the position after it.
        """
        course, ranks = self.course, self.ranks
        end = course.next_evaluation(course.done(self.evaluated))
        label, first = self.label(end)
        record.start_clock()
        with Progress(label, end - first, ranks.is_first, before=course.done(start) - first) as progress:
            for done in self.steps_to(end, start, record):
                progress.advance(1, self.after_step(done, record, end))
        row = self.training_row(record, start, end)
        # The checkpoint of the last step is written by now, so that a run that ends in evaluation need not train again.
        finished, before = course.at(end), self.last_step(end)
        scores, seen, pictures = self.evaluate()
        score = scores.values[self.task.score]
        best_before = self.best
        if self.best is None or score > self.best["score"]:
            self.best = {"score": score, "epoch": finished.epoch}
            if finished.step:
                self.best["step"] = finished.step
        notes = [note for own in gather(record.notes, self.group) for note in own]
        counts: dict[str, Any] = {kind: sum(kind in note for note in notes) for kind in INCIDENTS}
        row = replace(row, scores=scores, images=self.val_images.samples, **counts)
        findings, is_best = Findings(self.by_class(row), pictures), self.best is not best_before
        self.folder.write_row(row, seen, notes, findings, is_best, record.images)
        if ranks.is_first:
            tell(self.line(end, row))
        summary, self.evaluated = self.summary(end, row, self.best), finished
        # After the log, which a resumed run expects to hold what its checkpoint was evaluated on.
        self.save(finished, None, summary, supersedes=None if before == finished else before)
        self.folder.publish(finished, summary, self.best)
        return finished

    def new_record(self) -> EpochRecord:
        """Begins the record of the steps up to the next evaluation."""
        return EpochRecord(self.device, keeps_images=self.ranks.is_first)

    def label_remarks(self) -> list[str]:
        """Says which labels the images are trained with, where those are not the set's own."""
        if self.relabelling is None:
            return []
        sidecar, labels = self.relabelling.sidecar, self.config.data.labels
        total, wrong = len(sidecar.names), sidecar.wrong
        share = f"{wrong:,} of {total:,} wrong, {100 * wrong / total:.2f} %"
        return [f"data.labels={labels}: {share}; digest {sidecar.digest[:12]}"]

    def label(self, end: int) -> tuple[str, int]:
        """Returns what the progress up to an evaluation is of, and after how many steps of the run it begins."""
        first = self.course.done(self.evaluated)
        if self.course.by_step:
            return f"steps {first + 1} to {end} of {self.course.steps}", first
        return f"epoch {self.evaluated.epoch + 1}/{self.course.epochs}", first

    def last_step(self, end: int) -> Position:
        """The position after the last step before an evaluation, which may be the last one of an epoch."""
        return self.course.at(end - 1).after_step()

    def steps_to(self, end: int, start: Position, record: EpochRecord) -> Iterator[Position]:
        """Trains up to a step of the run, through as many epochs as it takes. Yields: the position after each step."""
        course, here = self.course, start
        while course.done(here) < end:
            here = course.at(course.done(here))
            until = min(course.epoch_steps, end - here.epoch * course.epoch_steps)
            parts = (self.config, self.learner, self.train_images, self.to_device, record, here, self.ranks)
            for here in train_epoch(*parts, until):
                yield here

    def after_step(self, done: Position, record: EpochRecord, end: int) -> str:
        """Looks at a step that is done: was it bad, is a checkpoint due, are the ranks to stop?

        Args:
            end: steps of the run after which it is evaluated next.
        Returns: what there is to show. Raises: Stopped, RunError.
        """
        every, steps = self.config.checkpoint.every_steps, self.course.done(done)
        last = steps == end
        # Every rank asks after every step, and all are given the same answer, so that all stop at the same one.
        stop = self.asked_to_stop(wait=last)
        due = stop or last or (every is not None and steps % every == 0)
        checked = last or done.step % self.config.train.check_every == 0
        if due or checked or done.step == self.course.epoch_steps:
            # Before the checkpoint: nobody can use one of weights that are lost.
            refuse_bad_step(self.config, record, self.train_images, done.epoch, self.ranks)
        if checked and (loss := record.recent_loss(self.ranks)) is not None:
            self.folder.write_loss(steps, loss)
        if due:
            self.save(done, record)
        if stop:
            raise self.stopped(done)
        return f"loss {record.mean_loss(self.ranks):.3f}" if checked else ""

    def evaluate(self) -> tuple[Scores, Observations, dict[int, bytes]]:
        """The metrics of the network, or of its averages where they are kept; what observers saw of it; pictures."""
        networks = self.learner.networks()
        for network in networks:
            # Each rank has running averages of its own in training; they are scored and saved as one.
            average_buffers(network)
        refuse_drift(networks, self.ranks, self.group)
        network, examples = networks[-1], Examples(self.task, self.val_images)
        with watching(network) as seen:
            size, visible = self.config.shown_size, self.ranks.is_first
            scores = evaluate(self.task, network, self.val_images, size, self.to_device, visible, [examples])
        return scores, seen(), examples.of_all_ranks(self.group)

    def by_class(self, row: Row) -> ByClass:
        """Collects what was counted class by class in the evaluation of a row."""
        return ByClass(
            **row.key,
            task=self.task.name,
            counted=self.task.counted,
            classes=self.classes,
            trained=self.train_images.per_class,
            counts={name: Entries.of(table) for name, table in row.scores.counts.items()},
        )

    def save(
        self,
        at: Position,
        record: EpochRecord | None,
        summary: Summary | None = None,
        supersedes: Position | None = None,
    ) -> None:
        """Writes a checkpoint, all ranks together.

        Args:
            at: how much of the run is done.
            record: of the steps since the last evaluation; None after one.
            summary: of the run after an evaluation.
            supersedes: the position of an older checkpoint that is of no more use.
        """
        own = {"losses": record.state_dict(), "buffers": self.learner.buffers()} if record else None
        state = Checkpoint(
            **self.learner.state_dict(),
            position=at,
            ranks=gather(own, self.group) if record else [],
            best=self.best,
            summary=summary,
            evaluated=self.evaluated,
            config=self.config.model_dump(),
            norms=layers_as_built(self.model),
            classes=self.classes,
            data=self.data,
            circumstances=self.circumstances,
        )
        self.folder.save(state, self.config.checkpoint.keep, supersedes)

    def asked_to_stop(self, wait: bool) -> bool:
        """Tells whether all ranks stop here, because one was asked to (see Vote.agreed)."""
        return self.vote.agreed(bool(self.request.signal), wait)

    def asked_by(self) -> str:
        return self.request.signal or "a signal to another rank"

    def stopped(self, position: Position) -> Stopped:
        """Makes the exception that ends the run here after a signal."""
        where, how = position.words(self.course.epoch_steps), f"--resume {self.folder.path} resumes"
        return Stopped(f"stopped by {self.asked_by()} after {where}, checkpoint written: {how} (exit code {RESUME_ME})")

    def finished(self) -> str:
        """Says of a run that is resumed after its end that there is nothing to do."""
        key = "train.steps" if self.config.train.epochs is None else "train.epochs"
        where = self.course.words(self.course.steps)
        return f"finished at {where}: nothing is left to train; a larger {key} trains on from here"

    def headline(self) -> str:
        """The run in one line."""
        cost, config = self.cost, self.config
        return (
            f"{config.model.name} with {config.norm.name}: {cost.params:,} parameters, {cost.gmacs:.3g} + "
            f"{cost.norm_gmacs:.2g} GMACs at {in_words(config.eval_resolution)} pixels; {self.train_images.samples} "
            f"training images, {len(self.classes)} classes; {hardware(self.ranks, self.device)}; "
            f"{self.ranks.world_size} ranks; {self.folder.path}"
        )

    def training_row(self, record: EpochRecord, start: Position, end: int) -> Row:
        """Training up to a step in numbers: the rate of that step; speed and times of what this process did of it."""
        seconds, data_wait, course = record.seconds, record.data_wait, self.course
        images, last = (end - course.done(start)) * self.config.train.batch_size, course.at(end - 1)
        return Row(
            **course.key(end),
            train_loss=record.mean_loss(self.ranks),
            lr=schedule_of(self.config, course.epochs).rate(last.time(course.epoch_steps)),
            images_per_second=images / seconds if images else None,
            data_wait=data_wait,
            seconds=seconds,
            resolution=as_key(self.config.training_resolution.at(last.epoch)),
            outcomes=record.outcomes(),
        )

    def line(self, end: int, row: Row) -> str:
        """Training up to an evaluation in one line."""
        labels, values = self.task.labels.items(), row.scores.values
        scored = [f"{label.text} {values[name]:.2f} {label.unit}".strip() for name, label in labels if name in values]
        remark = self.task.remark(values, len(self.classes))
        line = f"{self.course.words(end)}: loss {row.train_loss:.4f}, {', '.join(scored)}"
        line += f" ({remark})" if remark else ""
        if self.relabelling:
            line += (
                f", {told(row.outcomes) or 'memorization not counted: images are mixed, or the task names no class'}"
            )
        if row.images_per_second is None:  # resumed after its last step
            return line
        waited = f"waited {100 * row.data_wait:.0f} % for data"
        return f"{line}, {row.images_per_second:.0f} images/s, {waited}"

    def summary(self, done: int, row: Row, best: Best) -> Summary:
        """The run up to an evaluation after `done` steps, the last row of its log."""
        config, course, best_at = self.config, self.course, position_of(best)
        return Summary(
            model=config.model.name,
            norm=config.norm.name,
            norm_options=in_one(layers_as_built(self.model)),
            mixed=mixed_layers(self.model),
            task=self.task.name,
            dataset=self.train_images.name,
            classes=len(self.classes),
            images=self.val_images.samples,
            seed=config.seed,
            epochs=course.epochs,
            epochs_done=course.epoch(done),
            resolution=config.data.resolution,
            eval_resolution=as_key(config.eval_resolution),
            batch_size=config.train.batch_size,
            scores=row.scores.values,
            details=row.scores.details,
            score=self.task.score,
            best_score=best["score"],
            best_epoch=course.epoch(course.done(best_at)),
            done_at=course.at(done) if course.by_step else None,
            best_at=best_at if course.by_step else None,
            images_per_second=row.images_per_second,
            world_size=self.ranks.world_size,
            hardware=hardware(self.ranks, self.device),
            **asdict(self.cost),
        )
