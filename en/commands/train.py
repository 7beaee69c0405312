"""Train: en-train CONFIG [key=value ...], or en-train --resume RUN [key=value ...]; also train.py; and torchrun.

A resumed run has its configuration from its folder; CONFIG may be given too, and takes its place.
"""

import argparse
import json
import re
from pathlib import Path

from en.errors import Parser, UserError, exit_on_error
from en.threads import choose_threads
from en.training.signals import StopRequest


def arguments_of_command() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, see configs/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. norm.name=gn optim.lr=0.2")
    parser.add_argument("--resume", metavar="RUN|FILE|auto", help="resume from a run folder's newest checkpoint, from "
                        "one of its checkpoints, or auto: from run_dir's newest, else begin")  # fmt: skip
    parser.add_argument("--drop-later", action="store_true", help="resume from an older checkpoint in the run's own "
                        "folder, and drop the later ones with their rows of the logs")  # fmt: skip
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    arguments = parser.parse_intermixed_args()
    if arguments.config and re.match(r"[\w.]+=", arguments.config) and not Path(arguments.config).is_file():
        arguments.overrides, arguments.config = [arguments.config, *arguments.overrides], None
    if arguments.resume is not None:
        arguments.overrides.append(f"resume={json.dumps(arguments.resume)}")
    return arguments


def train(stop: StopRequest) -> None:
    arguments = arguments_of_command()

    choose_threads()
    from en.config.reading import dump, load_config
    from en.runs.start import load_begun

    path, overrides = arguments.config, arguments.overrides
    config, path = load_begun(overrides) if path is None else (load_config(path, overrides), path)
    if arguments.print_config:
        print(dump(config), end="")
        return

    if arguments.drop_later and (config.resume is None or Path(config.resume).is_dir()):
        raise UserError("--drop-later: expected --resume with a checkpoint of the run, after which the rest is dropped")

    from en.training.run import TrainingRun

    TrainingRun(config, path, stop, arguments.drop_later).train()


def main() -> None:
    with StopRequest() as stop:
        exit_on_error(lambda: train(stop))


if __name__ == "__main__":
    main()
