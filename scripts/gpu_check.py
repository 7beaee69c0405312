#!/usr/bin/env python3
"""Measure on a GPU, within 10 minutes, all that is claimed of one: speed, memory, exactness. Its last line is JSON.

The parts are the tests of tests/gpu. Needs torch 2.11 or later, pytest and pytest-timeout; says at the start what else
is there, and what is skipped without it. Exit code 1 where a part failed; not for one that was cut off at its limit.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from gpu.machine import facts, refuse_unusable, tell_packages
from gpu.parts import MINUTES, PARTS

from en.errors import Parser, RunError, UserError, exit_on_error, shown, whole_number


def part_names(text: str) -> list[str]:
    """The `type` of an argument that is a list of parts."""
    unknown = [name for name in text.split(",") if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{shown(unknown[0])}: expected some of {','.join(PARTS)}")
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=part_names, default=list(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--skip", type=part_names, default=[], metavar="A,B", help="parts to leave out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE, after each part")
    parser.add_argument("--images", metavar="SOURCE", help="for accuracy: a folder with train/CLASS/, val/CLASS/")
    parser.add_argument(
        "--minutes", type=whole_number(1, 600), default=MINUTES, help="for all; each part has its share"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing, to try the parts out")
    return parser.parse_args()


def main() -> None:
    ends, options = time.monotonic(), arguments()
    ends += 60 * options.minutes
    out = options.json
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise UserError(f"--json {out}: expected a file in an existing, writable folder")
    refuse_unusable(options.device, options.tiny)
    chosen = [name for name in PARTS if name in options.only and name not in options.skip]
    runnable = {name: PARTS[name] for name in chosen if not PARTS[name].missing()}
    if options.images is not None and "accuracy" in runnable:
        from en.data.sources import read_source

        read_source(options.images)  # a mistake now, not when the part has its turn
    report: dict[str, Any] = {**facts(options.device, options.tiny), "parts": {}}
    tell_packages(report, chosen)

    from gpu.running import run_parts
    from gpu.targets import loading_rows, summary, target_rows

    from en.benchmarks.timing import show, write

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part outlives this process
    handed = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    handed += [] if options.images is None else ["--images", str(Path(options.images).absolute())]
    with tempfile.TemporaryDirectory() as folder:
        for name, result in run_parts(runnable, options.minutes / MINUTES, ends, handed, Path(folder)):
            report["parts"][name] = result
            write(out, report)
    figures = {name: value for part in report["parts"].values() for name, value in part["figures"].items()}
    report |= {"loading": loading_rows(figures), "targets": target_rows(figures, options.tiny)}
    if report["loading"]:
        show("loading against what training ResNet50 with EN takes in on the GPU", report["loading"])
    show("targets, on an H200 or alike", report["targets"])
    write(out, report)
    found = summary(report, chosen)
    print(json.dumps(found), flush=True)
    if found["failures"]:
        raise RunError(f"{len(found['failures'])} failures; the first: {found['failures'][0]}")


if __name__ == "__main__":
    exit_on_error(main)
