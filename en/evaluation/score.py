"""A finished network scored from its checkpoint alone."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from en.build import build_to_device, refuse_few_images
from en.data import naming_dead_workers
from en.data.to_device import ToDevice
from en.distributed.agreement import refuse_differences
from en.distributed.device import choose_device
from en.distributed.group import process_group
from en.distributed.liveness import naming_silent_ranks
from en.distributed.ranks import Ranks
from en.evaluation.evaluate import evaluate
from en.evaluation.recalibrate import recalibrate
from en.evaluation.trained import Trained, open_trained
from en.runs.provenance import ranks_facts


class Scoring(NamedTuple):
    """A finished network on its device, with its data, on each of the ranks that score it together."""

    trained: Trained
    ranks: Ranks
    to_device: ToDevice


def score(where: str, overrides: list[str], recalibrate_over: int) -> dict[str, Any]:
    """The metrics of a run's last.pt, or of a checkpoint, on its data's val split, with the number of images.

    They are the same on all ranks. The averaged weights are scored where the run kept them.

    Args: as for `scoring`.
    Raises: UserError, RunError.
    """
    with scoring(where, overrides, recalibrate_over) as (trained, ranks, to_device):
        config, loader = trained.config, trained.loaders["val"]
        scores = evaluate(config.task, trained.model, loader, config.shown_size, to_device, ranks.is_first)
    return {**config.task.manner, **scores.values, **scores.details, "images": loader.samples}


@contextmanager
def scoring(
    where: str, overrides: list[str], recalibrate_over: int, facts: Mapping[str, Any] | None = None
) -> Iterator[Scoring]:
    """Opens a finished network, to be scored on its data's val split by all ranks.

    Args:
        where: a run folder or a checkpoint.
        overrides: `key=value` over the configuration in the checkpoint.
        recalibrate_over: training batches over which running averages are taken anew, or those of an epoch where they
            are fewer; 0 keeps them.
        facts: what else the ranks have to share.
    Raises: UserError, RunError.
    """
    ranks = Ranks.from_environment()
    trained = open_trained(where, overrides, ranks, ("train", "val") if recalibrate_over else ("val",))
    config, model, loaders = trained.config, trained.model, trained.loaders
    if recalibrate_over:
        refuse_few_images(config, loaders["train"].samples)
    data = {split: {"samples": loader.samples, "digest": loader.digest} for split, loader in loaders.items()}
    shared = ranks_facts(config, data, loaders["val"].made_by)
    shared |= {"checkpoint": trained.saved.digest, "recalibrate": recalibrate_over, **(facts or {})}
    with closing(trained), together(trained, ranks, shared) as to_device:
        if recalibrate_over:
            recalibrate(model, loaders["train"], recalibrate_over, config.training_resolution.full, to_device)
        yield Scoring(trained, ranks, to_device)


@contextmanager
def together(trained: Trained, ranks: Ranks, facts: dict[str, Any]) -> Iterator[ToDevice]:
    """Has all ranks hold a finished network on their devices, inside `with`.

    Args:
        facts: what the ranks have to share.
    Raises: UserError where they differ; RunError for a rank that falls silent.
    """
    config, device = trained.config, choose_device(trained.config.device, ranks)
    with (
        naming_dead_workers(),
        process_group(ranks, device, config.distributed.timeout_s) as group,
        naming_silent_ranks(ranks, group),
    ):
        refuse_differences(facts, group)
        to_device = build_to_device(config, device)
        trained.model.to(device=device, memory_format=to_device.memory_format)  # type: ignore[call-overload]
        yield to_device
