"""Train: en-train CONFIG [key=value ...] [--resume RUN] [--print-config]; also train.py; either under torchrun."""

import json

from en.errors import Parser, exit_on_error
from en.threads import choose_threads
from en.training.signals import StopRequest


def train(stop: StopRequest) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. norm.name=gn optim.lr=0.2")
    parser.add_argument("--resume", metavar="RUN|FILE|auto", help="resume from a run folder's newest checkpoint, from "
                        "one of its checkpoints, or auto: from run_dir's newest, else begin")  # fmt: skip
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    arguments = parser.parse_intermixed_args()

    choose_threads()
    from en.config.reading import dump, load_config

    resume = [] if arguments.resume is None else [f"resume={json.dumps(arguments.resume)}"]
    config = load_config(arguments.config, [*arguments.overrides, *resume])
    if arguments.print_config:
        print(dump(config), end="")
        return

    from en.training.run import TrainingRun

    TrainingRun(config, arguments.config, stop).train()


def main() -> None:
    with StopRequest() as stop:
        exit_on_error(lambda: train(stop))


if __name__ == "__main__":
    main()
