"""Evaluate: en-eval RUN_OR_CHECKPOINT [key=value ...] [--recalibrate N] [--at SIZE ...] [--protocol NAME ...].

On other sets: en-eval RUN_OR_CHECKPOINT [key=value ...] --on SET [SET ...] [--real FILE] [--at SIZE ...].

Also eval.py, and torchrun. A run folder means its last.pt. The last line on stdout is one JSON object: the metrics of
its task, and images. With --at there is such a line for each size of the images, with its resolution, and with
--protocol for each protocol, with all that it says. With --on there is one for each set, with how many of its classes
and images count, and at the end a table of them on stderr.
"""

import argparse
import json
import re
from itertools import product
from pathlib import Path

from en.errors import Parser, UserError, exit_on_error, shown, whole_number
from en.progress import tell
from en.threads import choose_threads


def size(text: str) -> int | list[int]:
    """The `type` of an argument that is a side of squares, or height and width, as a key of a configuration has it."""
    if not re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected a side in pixels, or HEIGHTxWIDTH")
    first, *rest = map(int, text.split("x"))
    return [first, *rest] if rest else first


def evaluate() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="RUN_OR_CHECKPOINT", help="a run folder or a .pt file in it")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="over the configuration in the checkpoint")
    parser.add_argument(
        "--recalibrate",
        metavar="N",
        type=whole_number(0, 10**9),
        default=0,
        help="take running averages over N training batches, at most an epoch",
    )
    parser.add_argument(
        "--at",
        metavar="SIZE",
        nargs="+",
        type=size,
        help="sizes of the images, pixels, as 224 or 512x1024, height first, for data.eval_resolution; --recalibrate "
        "takes crops of that size too",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        nargs="+",
        help="protocols of scoring maps of classes, for task.protocol, as mmseg ours: see docs/segmentation.md",
    )
    parser.add_argument(
        "--on",
        metavar="SET",
        nargs="+",
        help="other sets than the run's, prepared or of image files, matched by their classes: see docs/transfer.md",
    )
    parser.add_argument(
        "--real", metavar="FILE", type=Path, help="ReaL's real.json, for sets of ImageNet's validation images in --on"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.on and arguments.recalibrate:
        raise UserError(f"--on with --recalibrate {arguments.recalibrate}: expected one of them")
    if arguments.real and not arguments.on:
        raise UserError("--real without --on: expected --on with a set of ImageNet's validation images")

    choose_threads()
    from en.distributed.ranks import Ranks
    from en.evaluation.elsewhere import score_elsewhere, table
    from en.evaluation.score import score

    is_first, rows = Ranks.from_environment().is_first, []
    for side, protocol in product(arguments.at or [None], arguments.protocol or [None]):
        keys = ["data.eval_resolution", *(["data.resolution"] if arguments.recalibrate else [])] if side else []
        overrides = [*arguments.overrides, *(f"{key}={side}" for key in keys)]
        overrides += [f"task.protocol={protocol}"] if protocol else []
        found = (
            score_elsewhere(arguments.checkpoint, overrides, arguments.on, arguments.real)
            if arguments.on
            else [score(arguments.checkpoint, overrides, arguments.recalibrate)]
        )
        for scores in found:
            rows.append(({"resolution": side} if side else {}) | scores)
            if is_first:
                print(json.dumps(rows[-1]), flush=True)
    if arguments.on and is_first:
        for line in table(rows):
            tell(line)


def main() -> None:
    exit_on_error(evaluate)


if __name__ == "__main__":
    main()
