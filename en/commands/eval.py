"""Evaluate: en-eval RUN_OR_CHECKPOINT [key=value ...] [--recalibrate N] [--at SIZE ...] [--protocol NAME ...]
[--statistics KIND ...] [--corrupt NAME[:SEVERITY] ...] [--seed N].

On other sets: en-eval RUN_OR_CHECKPOINT [key=value ...] --on SET [SET ...] [--real FILE] [--at SIZE ...]
[--statistics KIND ...].

Also eval.py, and torchrun. A run folder means its last.pt. The last line on stdout is one JSON object: the metrics of
its task, and images. With --at there is such a line for each size of the images, with its resolution, and with
--protocol for each protocol, with all that it says. With --on there is one for each set, with how many of its classes
and images count; with --statistics or --corrupt one for each of both, and for the mean over corruptions. Their tables
are on stderr.
"""

import argparse
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

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
    set_arguments(parser)
    shift_arguments(parser)
    arguments = parser.parse_intermixed_args()
    for name in ("protocol", "statistics", "corrupt", "on"):  # which take all words up to the next option
        words = getattr(arguments, name) or []
        keys = [word for word in words if "=" in word and not (name == "on" and Path(word).exists())]
        arguments.overrides += keys
        setattr(arguments, name, [word for word in words if word not in keys] or None)
    refuse_together(arguments)

    choose_threads()
    from en.distributed.ranks import Ranks
    from en.evaluation.elsewhere import table
    from en.evaluation.trained import refuse_overrides

    is_first, rows = Ranks.from_environment().is_first, []
    manners = [*product(arguments.at or [None], arguments.protocol or [None])]
    if len(manners) > 1:  # so that a mistake in the last one costs no time
        refuse_overrides(arguments.checkpoint, [overrides_of(arguments, *manner) for manner in manners])
    for side, protocol in manners:
        for scores in all_scores(arguments, overrides_of(arguments, side, protocol)):
            rows.append(({"resolution": side} if side else {}) | scores)
            if is_first:
                print(json.dumps(rows[-1]), flush=True)
    if arguments.on and is_first:
        for line in table(rows):
            tell(line)


def refuse_together(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that do not go together."""
    for name in ("recalibrate", "corrupt"):
        if arguments.on and getattr(arguments, name):
            raise UserError(f"--on with --{name}: expected one of them")
    if arguments.real and not arguments.on:
        raise UserError("--real without --on: expected --on with a set of ImageNet's validation images")
    if arguments.seed is not None and not (arguments.statistics or arguments.corrupt):
        raise UserError(f"--seed {arguments.seed}: expected --statistics or --corrupt with it")


def overrides_of(arguments: argparse.Namespace, side: int | list[int] | None, protocol: str | None) -> list[str]:
    """The overrides of one size and protocol."""
    keys = ["data.eval_resolution", *(["data.resolution"] if arguments.recalibrate else [])] if side else []
    overrides = [*arguments.overrides, *(f"{key}={side}" for key in keys)]
    return overrides + ([f"task.protocol={protocol}"] if protocol else [])


def set_arguments(parser: Parser) -> None:
    """Adds the arguments that name other sets."""
    parser.add_argument(
        "--on",
        metavar="SET",
        nargs="+",
        help="other sets than the run's, prepared or of image files, matched by their classes: see docs/transfer.md",
    )
    parser.add_argument(
        "--real", metavar="FILE", type=Path, help="ReaL's real.json, for sets of ImageNet's validation images in --on"
    )


def shift_arguments(parser: Parser) -> None:
    """Adds the arguments that change what a network is shown, or what it normalizes that by."""
    parser.add_argument(
        "--statistics",
        metavar="KIND",
        nargs="+",
        help="what running averages are replaced by: none, full (those of the set), batch (each batch's), partial:N "
        "(each batch's mixed with the averages, which count like N images); :SIZE for the images of a batch",
    )
    parser.add_argument(
        "--corrupt",
        metavar="NAME[:SEVERITY]",
        nargs="+",
        help="corruptions of the images, as fog or fog:3, or all: see docs/robustness.md",
    )
    parser.add_argument("--seed", metavar="N", type=whole_number(0, 2**32 - 1), help="of these two, default 0")


def all_scores(arguments: argparse.Namespace, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """The rows that are printed of one size and protocol."""
    from en.evaluation.adapt import Statistics
    from en.evaluation.elsewhere import score_elsewhere
    from en.evaluation.robustness import parse_corruptions, score_shifted
    from en.evaluation.score import score

    where, recalibrate, seed = arguments.checkpoint, arguments.recalibrate, arguments.seed or 0
    statistics = [Statistics.parse(text) for text in arguments.statistics or []]
    if arguments.on:
        yield from score_elsewhere(where, overrides, arguments.on, arguments.real, statistics, seed)
        return
    if not statistics and arguments.corrupt is None:
        yield score(where, overrides, recalibrate)
        return
    corruptions = parse_corruptions(arguments.corrupt or [])
    yield from score_shifted(where, overrides, recalibrate, statistics or [Statistics()], corruptions, seed)


def main() -> None:
    exit_on_error(evaluate)


if __name__ == "__main__":
    main()
