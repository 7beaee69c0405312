"""One rank of an evaluation that leaves what it counted and drew: evaluate_worker.py RUN OUT [key=value ...]."""

import json
import sys
from pathlib import Path

from en.build import build_to_device
from en.distributed.device import choose_device
from en.distributed.group import process_group
from en.distributed.ranks import Ranks
from en.evaluation.evaluate import evaluate
from en.evaluation.examples import Examples
from en.evaluation.trained import open_trained
from en.runs.by_class import ByClass, Entries, Findings
from en.threads import choose_threads


def work(run: str, out: str, *overrides: str) -> None:
    choose_threads()
    ranks = Ranks.from_environment()
    trained = open_trained(run, overrides, ranks, ("train", "val"))
    config, loader = trained.config, trained.loaders["val"]
    device, examples = choose_device(config.device, ranks), Examples(config.task, loader)
    with process_group(ranks, device, 60) as group:
        size, to_device = config.shown_size, build_to_device(config, device)
        scores = evaluate(config.task, trained.model, loader, size, to_device, False, [examples])
        pictures = examples.of_all_ranks(group)
    task, counts = config.task, {name: Entries.of(table) for name, table in scores.counts.items()}
    names, trained_on = loader.classes, trained.loaders["train"].per_class
    found = ByClass(
        epoch=trained.saved.position.epoch,
        task=task.name,
        counted=task.counted,
        classes=names,
        trained=trained_on,
        counts=counts,
    )
    if ranks.is_first:
        Findings(found, pictures).write(Path(out))
        (Path(out) / "scores.json").write_text(json.dumps(scores.values))
    trained.close()


if __name__ == "__main__":
    work(*sys.argv[1:])
