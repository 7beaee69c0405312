#!/usr/bin/env python3
"""Watch the normalizers in the first steps of a training: experiments/diagnose.py CONFIG [key=value ...] --out DIR

By layer and branch: near-constant cells, ratios, the gain of the values and of the gradient; by step: loss and gradient
norm. Writes layers.csv and steps.csv, and prints the last look, by size of the map. It runs as one process.
"""

import argparse
import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, exit_on_error, whole_number


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="over the configuration")
    parser.add_argument("--steps", type=whole_number(1, 10**6), default=200, help="of training, default 200")
    parser.add_argument("--every", type=whole_number(1, 10**6), default=20, help="steps between looks, default 20")
    parser.add_argument("--layers", action="store_true", help="print every layer, bottom to top, not means by size")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder of the tables")
    arguments = parser.parse_intermixed_args()

    from en.config.reading import load_config
    from experiments.diagnosis.gains import Gain
    from experiments.diagnosis.table import show_gains
    from experiments.diagnosis.trace import trace

    config = load_config(arguments.config, arguments.overrides)
    arguments.out.mkdir(parents=True, exist_ok=True)
    gains: dict[str, list[Gain]] = {}
    largest = (0.0, 0)
    with (
        (arguments.out / "steps.csv").open("w", newline="") as steps_file,
        (arguments.out / "layers.csv").open("w", newline="") as layers_file,
    ):
        steps, layers = csv.writer(steps_file), csv.writer(layers_file)
        steps.writerow(["step", "loss", "gradient_norm"])
        layers.writerow(["step", "layer", *Gain.__dataclass_fields__])
        for step in trace(config, arguments.steps, arguments.every):
            steps.writerow([step.number, step.loss, step.gradient_norm])
            rows = [(name, gain) for name, found in step.gains.items() for gain in found]
            layers.writerows([step.number, name, *asdict(gain).values()] for name, gain in rows)
            gains = step.gains or gains
            largest = max(largest, (step.gradient_norm, step.number))
    (arguments.out / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n")
    show_gains(gains, arguments.layers)
    print(f"largest gradient norm {largest[0]:.3g}, at step {largest[1]}; loss of the last step {step.loss:.3f}")


if __name__ == "__main__":
    exit_on_error(main)
