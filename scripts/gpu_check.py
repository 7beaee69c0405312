#!/usr/bin/env python3
"""Measure on a GPU, within 10 minutes, all that is claimed of one: speed, memory, exactness. Needs torch 2.11 or later;
says at the start what else is there, and what is skipped without it."""

import argparse
import gc
import importlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.benchmarks.gpu.machine import facts, refuse_unusable, tell_packages
from en.benchmarks.gpu.parts import MINUTES, PARTS
from en.benchmarks.gpu.report import Report, Setup
from en.errors import Parser, UserError, exit_on_error, shown, whole_number

MARGIN_S = 3.0  # of its time that a part leaves for coming to an end


def part_names(text: str) -> list[str]:
    """The `type` of an argument that is a list of parts."""
    unknown = [name for name in text.split(",") if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{shown(unknown[0])}: expected some of {','.join(PARTS)}")
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--only", type=part_names, default=list(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--skip", type=part_names, default=[], metavar="A,B", help="parts to leave out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE, after each part")
    parser.add_argument("--images", metavar="SOURCE", help="for accuracy: a folder with train/CLASS/, val/CLASS/")
    parser.add_argument(
        "--minutes", type=whole_number(1, 600), default=MINUTES, help="for all; each part has its share"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing, to try the parts out")
    parser.add_argument("--fork", action="store_true", help="start processes as forks, on a CPU: faster")
    part = parser.add_argument_group("one part, in this process")
    part.add_argument("--part", choices=PARTS)
    part.add_argument("--rows", type=Path, default=Path("/dev/stdout"), metavar="FILE", help="for its lines of JSON")
    part.add_argument("--seconds", type=float, default=3600.0, help="that it may take")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    out = options.json
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--json {out}: expected a file in an existing, writable folder")
    refuse_unusable(options.device, options.tiny, options.fork)
    if options.part is not None:
        run_part(options)
        return

    from en.benchmarks.gpu.conduct import conduct

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part outlives this process
    chosen = [name for name in PARTS if name in options.only and name not in options.skip]
    found = facts(options.device, options.tiny)
    tell_packages(found, chosen)
    handed = ["--device", options.device, *(["--tiny"] if options.tiny else []), *(["--fork"] if options.fork else [])]
    handed += [] if options.images is None else ["--images", options.images]
    runnable = [name for name in chosen if not PARTS[name].missing()]
    if options.images is not None and "accuracy" in runnable:
        from en.data.sources import read_source

        read_source(options.images)  # a mistake now, not when the part has its turn
    if options.fork:
        preload(runnable)
    conduct(runnable, options.minutes, handed, options.fork, found, out)
    gc.unfreeze()


def preload(names: list[str]) -> None:
    """Imports what the parts would each import, runs of train.py included, and torch.compile when it is first used."""
    import torch

    for name in names:
        PARTS[name].load()
    with suppress(ImportError):
        importlib.import_module("en.training.run")
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))
    gc.freeze()  # what is imported here, no part's collection of garbage need look at


def run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ends = time.monotonic() + options.seconds - MARGIN_S
    setup = Setup(options.device, options.tiny, options.images, ends, options.fork)
    PARTS[options.part].load()(setup, Report(options.rows))


if __name__ == "__main__":
    exit_on_error(main)
