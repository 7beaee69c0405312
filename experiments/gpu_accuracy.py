#!/usr/bin/env python3
"""Train normalizers on small images on one GPU, every one with every seed at the same time, and compare their top-1.

The trainer is one of its own, in experiments/fleet, not that of train.py: other crops, another schedule.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, UserError, exit_on_error, shown, whole_number


def numbers(text: str) -> list[int]:
    """The `type` of an argument that is a list of whole numbers."""
    return [whole_number(1, 100_000)(part) for part in text.split(",")]


def not_negative(text: str) -> float:
    """The `type` of an argument that is a finite number, 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a finite number, 0 or more")
    return number


def refuse_unusable(device: str, tiny: bool) -> None:
    import torch

    if device == "cpu" and not tiny:
        raise UserError("--device cpu: expected --tiny too, because the sizes are those of a GPU")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: expected a GPU, found none (--device cpu --tiny tries it out)")


def refuse_unknown_network(name: str) -> None:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"--network {shown(name)}: expected a network of torchvision, such as resnet18")


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("images", metavar="SOURCE", help="a folder with train/CLASS/, val/CLASS/; see prepare_data.py")
    parser.add_argument("--network", default="resnet18", help="of torchvision, default resnet18")
    parser.add_argument("--small-stem", action="store_true", help="a ResNet's first convolution 3 x 3, no pooling")
    parser.add_argument("--pixels", type=whole_number(8, 1024), default=32, help="the network's input, default 32")
    parser.add_argument("--side", type=whole_number(8, 1024), help="of the images in memory, default --pixels")
    parser.add_argument("--epochs", type=whole_number(1, 10_000), default=10)
    parser.add_argument("--batch", type=whole_number(1, 100_000), default=128)
    parser.add_argument("--statistic", type=numbers, metavar="M,...", help="images of one statistic, default --batch")
    parser.add_argument("--rate", type=not_negative, default=0.1)
    parser.add_argument("--decay", type=not_negative, default=5e-4)
    parser.add_argument("--seeds", type=whole_number(1, 1000), default=5, help="how many")
    parser.add_argument("--normalizers", default="bn,gn,sn,en_paper,en")
    parser.add_argument("--seconds", type=whole_number(1, 1_000_000), default=1_000_000, help="fewer epochs, to fit")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="also append every row to FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to try it out")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    refuse_unusable(options.device, options.tiny)

    from en.benchmarks.timing import hardware
    from experiments.fleet.accuracy import LABELS, train_all
    from experiments.fleet.fleet import Recipe
    from experiments.fleet.pictures import read_pictures
    from experiments.fleet.rows import Rows

    refuse_unknown_network(options.network)
    labels, statistics = options.normalizers.split(","), options.statistic or [options.batch]
    if options.jsonl is not None and not options.jsonl.absolute().parent.is_dir():
        raise UserError(f"--jsonl {options.jsonl}: expected a file in an existing folder")
    for label in labels:
        if label not in LABELS or labels.count(label) > 1:
            raise UserError(f"--normalizers {shown(label)}: expected some of, each once, {','.join(LABELS)}")
    for images in statistics:
        if options.batch % images:
            raise UserError(f"--statistic {images}: expected divisors of --batch {options.batch}")
    cores, began = len(os.sched_getaffinity(0)), time.monotonic()
    pictures = read_pictures(options.images, options.side or options.pixels, options.device, cores)
    if len(pictures.train.labels) < options.batch:
        raise UserError(f"--batch {options.batch}: expected at most the {len(pictures.train.labels)} training images")
    recipe = Recipe(
        options.network,
        options.small_stem,
        options.pixels,
        options.epochs,
        options.batch,
        options.rate,
        options.decay,
    )
    print(f"{hardware(options.device, cores)}; images read in {time.monotonic() - began:.0f} s", flush=True)
    report = Rows(options.jsonl)
    train_all(report, pictures, recipe, labels, statistics, options.seeds, options.seconds)
    report.show()


if __name__ == "__main__":
    exit_on_error(main)
