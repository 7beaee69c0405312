"""Look at the ratios of a trained EN network: en-ratios RUN_OR_CHECKPOINT [key=value ...]; also scripts/ratios.py.

By layer, sample, class and epoch, over a whole set: tables, figures, and the samples at either extreme. A run folder
means its last.pt. It runs as one process.
"""

import argparse
import json
from pathlib import Path

from en.errors import Parser, exit_on_error, in_one_line
from en.threads import choose_threads


def look() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="RUN_OR_CHECKPOINT", help="a run folder or a .pt file in it")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="over the configuration in the checkpoint")
    parser.add_argument("--data", metavar="SET", help="another data set of the same classes, as data.root")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="its images, default val")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder of the files, default RUN/ratios")
    arguments = parser.parse_intermixed_args()

    choose_threads()
    from en.distributed.ranks import only_process
    from en.evaluation.ratios import describe, measure_ratios, read_pictures
    from en.evaluation.trained import open_trained
    from en.reports.ratios.files import make_folder, write_ratios
    from en.reports.ratios.tables import extremes
    from en.runs.ratios import read_epochs
    from en.runs.start import run_of

    ranks, split = only_process(), arguments.split
    data = [] if arguments.data is None else [f"data.root={json.dumps(arguments.data)}"]
    trained = open_trained(arguments.checkpoint, [*arguments.overrides, *data], ranks, [split])
    run = run_of(trained.path)
    out = arguments.out or run / "ratios"
    make_folder(out)
    ratios = measure_ratios(trained, split)
    found = extremes(ratios)
    pictures = read_pictures(trained.loaders[split], [row.sample for row in found], trained.config.shown_size)
    trained.close()
    write_ratios(out, ratios, found, pictures, read_epochs(run), describe(trained, split))
    print(in_one_line(f"{out}: ratios of {len(ratios.targets):,} images in {len(ratios.layers)} layers"))


def main() -> None:
    exit_on_error(look, extras="train,report")


if __name__ == "__main__":
    main()
