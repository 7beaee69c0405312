"""Normalizers trained on small images, all at the same time, by the second trainer, of experiments/."""

import os
from dataclasses import replace

from experiments.fleet.accuracy import train_all
from experiments.fleet.fleet import Recipe
from experiments.fleet.pictures import generated, read_pictures
from gpu.results import Report, Setup

RECIPE = Recipe("resnet18", small_stem=True, pixels=32, epochs=10, batch=128, rate=0.1, decay=5e-4)
LABELS, SEEDS = ("bn", "sn", "en"), 3
MOST = 12_800  # training images: so that it fits into its time


def test_accuracy(setup: Setup, report: Report) -> None:
    recipe, seeds = RECIPE, SEEDS
    if setup.tiny:
        recipe, seeds = replace(RECIPE, network="shufflenet_v2_x0_5", small_stem=False, epochs=1, batch=8), 1
    if setup.images is None:
        report.note("no --images: generated ones, which show that training works, and nothing about accuracy")
        counts = (4 * recipe.batch, recipe.batch) if setup.tiny else (MOST, 4000)
        pictures = generated(*counts, recipe.pixels, setup.device)
    else:
        pictures = read_pictures(setup.images, recipe.pixels, setup.device, len(os.sched_getaffinity(0)))
        pictures = replace(pictures, train=pictures.train.first(MOST))
    train_all(report, pictures, recipe, LABELS, (recipe.batch,), seeds, setup.left() - 5)
