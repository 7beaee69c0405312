"""Normalizers trained on small images, each with every seed at the same time: top-1, spread, paired differences."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

from en.benchmarks.timing import finish
from en.errors import UserError
from en.norm import AS_PUBLISHED, NORMALIZERS
from en.reports.statistics import difference, estimate
from experiments.fleet.fleet import FleetRun, Member, Recipe, fleet_of, lockstep
from experiments.fleet.pictures import Pictures
from experiments.fleet.rows import Report

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}_paper": (name, options) for name, options in AS_PUBLISHED.items()
}

LABELS = tuple(name for name in (*NORMALIZERS, *PUBLISHED) if name != "ssn")  # whose r follows the steps of a recipe
BASE = "bn"
TIMED_STEPS = 5
RECORDED_STEPS = 3  # are run before a graph is recorded


def train_all(
    report: Report,
    pictures: Pictures,
    recipe: Recipe,
    labels: Sequence[str],
    images: Sequence[int],
    seeds: int,
    seconds: float,
) -> None:
    """Trains and evaluates all runs of a comparison.

    Args:
        labels: of LABELS.
        images: of one statistic: a step's batch is taken in parts of so many, whose gradients are added.
        seeds: 0 to seeds - 1.
        seconds: that it may take: the epochs become fewer, the same for all, where those of the recipe do not fit.
    """
    began, steps = time.monotonic(), len(pictures.train.labels) // recipe.batch
    if recipe.epochs * steps < RECORDED_STEPS:
        raise UserError(f"--epochs {recipe.epochs}: expected at least {RECORDED_STEPS} steps, found {steps} an epoch")
    for label in labels:
        recipe.refuse_unusable(*PUBLISHED.get(label, (label, {})), pictures.classes)
    members = [
        Member(label, *PUBLISHED.get(label, (label, {})), of, seed)
        for seed, of, label in product(range(seeds), images, labels)
    ]
    runs = fleet_of(members, recipe, pictures)
    recorded = time.monotonic()
    timed = min(TIMED_STEPS, recipe.epochs * steps)
    lockstep(runs, timed)
    per_epoch = (time.monotonic() - recorded) / timed * steps
    left = seconds - (time.monotonic() - began)
    epochs = max(1, min(recipe.epochs, int(0.9 * left / per_epoch)))
    report.note(
        f"{len(runs)} runs recorded in {recorded - began:.0f} s; an epoch of all takes about {per_epoch:.3g} s; "
        f"{epochs} of {recipe.epochs} epochs fit into {left:.0f} s"
    )
    for run in runs:
        run.restart(epochs)
    finish(pictures.train.images.device.type)  # before other streams go on
    lockstep(runs, epochs * steps)
    title = (
        f"{pictures.what}, {len(pictures.train.labels)} images, {recipe.network}{', small stem' * recipe.small_stem}, "
        f"{recipe.pixels} pixels, {epochs} epochs, batch {recipe.batch}, rate {recipe.rate:g}, bfloat16"
    )
    tell(report, title, runs, steps, epochs, pictures)
    report.note(f"{time.monotonic() - began:.0f} s in all")


def tell(report: Report, title: str, runs: list[FleetRun], steps: int, epochs: int, pictures: Pictures) -> None:
    """Two tables: the runs, and their means with the difference to batch normalization of as many images."""
    scores: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    losses: dict[tuple[int, str], list[float]] = defaultdict(list)
    for run in runs:
        of, label, seed = run.member.images, run.member.label, run.member.seed
        loss = float(run.losses[(epochs - 1) * steps : epochs * steps].mean())
        scores[of, label][seed] = run.top1(pictures.val)
        losses[of, label].append(loss)
        values = {"top-1 %": f"{scores[of, label][seed]:.2f}", "training loss, last epoch": loss}
        report.row(f"{title}: runs", images=of, normalizer=label, seed=seed, **values)
    for (of, label), by_seed in scores.items():
        found = estimate([*by_seed.values()])
        assert found is not None
        row: dict[str, Any] = {"top-1 %": f"{found.mean:.2f}", "deviation": found.sd, "n": found.n}
        row["minus bn"] = row["95 %"] = None
        if label != BASE and (of, BASE) in scores:
            gap = difference(scores[of, BASE], by_seed)
            row["minus bn"] = f"{gap.mean:+.2f}"
            row["95 %"] = None if gap.low is None or gap.high is None else f"{gap.low:+.2f} to {gap.high:+.2f}"
        row["loss"] = statistics.fmean(losses[of, label])
        row["not finite"] = sum(not math.isfinite(loss) for loss in losses[of, label])
        report.row(title, **{"images of a statistic": of, "normalizer": label}, **row)
