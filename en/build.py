"""A configuration made into loaders and a network."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from en.config.schema import Config
from en.data import LOADERS, Augmentation, ImageLoader, Reading, Share
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.models import OptionError, build_model, check_output


def check_batch_size(config: Config, ranks: Ranks, samples: int) -> None:
    """Raises UserError for a global batch that the ranks cannot share alike or that the training set cannot fill."""
    train = config.train
    parts = ranks.world_size * train.accumulation
    if train.batch_size % parts:
        shape = f"{ranks.world_size} ranks x accumulation {train.accumulation}"
        raise UserError(f"train.batch_size={train.batch_size}: expected a multiple of {parts} ({shape})")
    if samples < train.batch_size:
        have = f"{samples} training images of data.root={config.data.root}"
        raise UserError(f"train.batch_size={train.batch_size}: expected at most the {have}")


def open_loaders(config: Config, ranks: Ranks, splits: Sequence[str]) -> dict[str, ImageLoader]:
    """The loaders of the splits (train, val) for this rank. Raises UserError for data that cannot be read."""
    train, data = config.train, config.data
    parts = ranks.world_size * train.accumulation
    micro_batch = max(1, train.batch_size // parts)
    reading = Reading(
        share=Share(micro_batch * parts, train.accumulation, ranks.rank, ranks.world_size, config.seed),
        augmentation=Augmentation((data.crop_scale[0], data.crop_scale[1]), (data.crop_ratio[0], data.crop_ratio[1]), data.flip),
        centre_share=data.centre_share,
        workers=ranks.default_workers() if data.workers is None else data.workers,
        timeout_s=data.timeout_s,
        pinned=config.device != "cpu" and torch.cuda.is_available(),
        skip_damaged=data.on_error == "skip",
    )
    return {split: LOADERS[data.loader](Path(data.root), split, reading) for split in splits}


def build_network(config: Config, classes: int) -> nn.Module:
    """The configured network, initialized from the seed alone.

    Raises: UserError for one that cannot be built, does not take the configured sizes, or is no classifier.
    """
    torch.manual_seed(config.seed)
    model, norm = config.model, config.norm
    named = f"model.name={model.name}" + (f", model.options={model.options}" if model.options else "")
    own = (model.zero_init_last_gamma, model.dropout, model.options)
    try:
        network = build_model(model.name, classes, norm.name, norm.options, *own)
    except OptionError as error:
        raise UserError(f"model.{error}") from error
    except ValueError as error:
        keys = ", ".join(f"norm.{key}={value}" for key, value in norm.model_dump().items())
        raise UserError(f"{named}, {keys}: {error}") from error
    try:
        check_output(network, classes, config.training_resolution.sides(config.train.epochs), [config.eval_resolution])
    except ValueError as error:
        raise UserError(f"{named}, data.resolution={config.data.resolution}: {error}") from error
    return network
