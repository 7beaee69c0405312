"""A configuration made into loaders, a network and its input."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from en.config.schema import Config, NormConfig
from en.data import LOADERS, ImageLoader, Part, Reading
from en.data.labels import relabelled, sidecar_path
from en.data.sources.source import EVALUATION
from en.data.to_device import ToDevice, padding_of
from en.distributed.device import choose_device
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.models import OptionError, check_output, skeleton
from en.models.freezing import Frozen, freeze_parts
from en.models.transfer import BATCH_NORM
from en.norm.base import SINGLE_VALUE_CURE, Normalizer, RunningNormalizer
from en.norm.built import layers_as_built, rebuild
from en.norm.combined import CombinedNormalizer
from en.norm.registry import INHERITED
from en.norm.trained_maps import maps_of, set_maps
from en.runs import row
from en.runs.contents import Checkpoint
from en.size import Size, in_words


def check_batch_size(config: Config, ranks: Ranks, samples: int) -> None:
    """Raises UserError for a global batch that the ranks cannot share alike or that the training set cannot fill."""
    train = config.train
    parts = ranks.world_size * train.accumulation
    if train.batch_size % parts:
        shape = f"{ranks.world_size} ranks x accumulation {train.accumulation}"
        raise UserError(f"train.batch_size={train.batch_size}: expected a multiple of {parts} ({shape})")
    refuse_few_images(config, samples)


def refuse_few_images(config: Config, samples: int) -> None:
    """Raises UserError for a global batch that the training set cannot fill."""
    if samples < config.train.batch_size:
        have = f"{samples} training images of data.root={config.data.root}"
        raise UserError(f"train.batch_size={config.train.batch_size}: expected at most the {have}")


def open_loaders(config: Config, ranks: Ranks, splits: Sequence[str]) -> dict[str, ImageLoader]:
    """The loaders of the splits (train, val) for this rank. Raises UserError for data that cannot be read."""
    reading, data = reading_of(config, ranks), config.data
    loaders = {split: LOADERS[data.loader](Path(data.root), split, reading) for split in splits}
    for loader in loaders.values():
        refuse_other_targets(config, loader, f"data.root={data.root}")
    if data.labels is not None and "train" in loaders:
        loaders["train"] = relabelled(loaders["train"], sidecar_path(Path(data.root), data.labels))
    return loaders


def open_set(config: Config, ranks: Ranks, root: Path) -> ImageLoader:
    """The loader of another set than the configured one for evaluation, of its val, or of test where it has none.

    Args:
        root: a prepared folder, or one of image files.
    Raises: UserError for data that cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: expected OUT of `en-prepare SOURCE OUT`, or a folder of image files")
    kind = "ffcv" if (root / "classes.json").is_file() else "folder"
    loader = LOADERS[kind](root, EVALUATION, reading_of(config, ranks))
    refuse_other_targets(config, loader, str(root))
    return loader


def reading_of(config: Config, ranks: Ranks) -> Reading:
    """Says how this rank's loaders read images."""
    train, data = config.train, config.data
    parts = ranks.world_size * train.accumulation
    micro_batch = max(1, train.batch_size // parts)
    return Reading(
        part=Part(micro_batch * parts, train.accumulation, ranks.rank, ranks.world_size, config.seed),
        training_crop=config.task.crop(training=True),
        evaluation_crop=config.task.crop(training=False),
        workers=workers_of(config, ranks),
        timeout_s=data.timeout_s,
        pinned=config.device != "cpu" and torch.cuda.is_available(),
        skip_damaged=data.on_error == "skip",
        padding=padding_of(data.mean),
        decode=data.decode,
        verify=data.verify,
    )


def workers_of(config: Config, ranks: Ranks) -> int:
    """Threads or processes with which each loader of this rank makes batches.

    By default this rank's share of the node's cores; on a CPU half of it, because training needs them too.
    """
    if config.data.workers is not None:
        return config.data.workers
    share = ranks.share_of_cores()
    return share if choose_device(config.device, ranks).type == "cuda" else max(1, share // 2)


def refuse_other_targets(config: Config, loader: ImageLoader, where: str) -> None:
    """Raises UserError for data that say of an image what the task is not learned from."""
    if not isinstance(loader.target, config.task.target):
        found, expected = loader.target.words, config.task.target.words
        raise UserError(f"{where}: {found}: expected {expected}, for task.name={config.task.name}")


def build_network(config: Config, classes: int, trained_at: Size | None = None) -> nn.Module:
    """The configured network, initialized from the seed alone.

    Its layers mix what belongs to the final size of the training images, from the first step on.

    Args:
        trained_at: that size; None for data.resolution.
    Raises: UserError for one that cannot be built, does not take the configured sizes, or whose output its task does
        not take.
    """
    try:
        config.task.check_metrics(classes, row.TAKEN)
    except ValueError as error:
        raise UserError(f"task.name={config.task.name}: {error}") from error
    torch.manual_seed(config.seed)
    model, norm = config.model, config.norm
    named = f"model.name={model.name}" + (f", model.options={model.options}" if model.options else "")
    try:
        network = config.task.network(classes, norm=norm.name, norm_options=norm.options, **model.model_dump())
    except OptionError as error:
        raise UserError(f"model.{error}") from error
    except ValueError as error:
        keys = ", ".join(f"norm.{key}={value}" for key, value in norm.model_dump().items())
        raise UserError(f"{named}, {keys}: {error}") from error
    try:
        check = partial(config.task.check_output, classes=classes)
        check_output(network, check, config.training_sizes, [config.eval_resolution])
    except ValueError as error:
        raise UserError(f"{named}, data.resolution={config.data.resolution}: {error}") from error
    if config.optim.head_lr_factor != 1 and not config.task.head(network):
        factor = f"optim.head_lr_factor={config.optim.head_lr_factor}"
        raise UserError(f"{factor}: expected 1: task.name={config.task.name} names no head of {named}")
    set_maps(network, maps_at(network, trained_at or config.training_resolution.full))
    return network


def inherit_options(model: nn.Module, saved: Checkpoint, then: Config, config: Config, prefix: str = "") -> None:
    """Gives the normalizers those options of the weights' own that the configuration does not give.

    Args:
        prefix: of the places of those that the weights are of.
    """
    now = {place: options for place, options in layers_as_built(model).items() if place.startswith(prefix)}
    norms = {prefix + place: options for place, options in saved.norms.items()}
    if norms.keys() != now.keys():
        return  # of an earlier version, which does not tell; of another network, which the names will show
    kept = None if then.norm.name == config.norm.name else INHERITED
    options = {
        place: now[place] | {
            key: value
            for key, value in theirs.items()
            if key in now[place] and key not in config.norm.options and (kept is None or key in kept)
        }
        for place, theirs in norms.items()
    }  # fmt: skip
    rebuild(model, options)
    set_maps(model, maps_at(model, config.training_resolution.full))


def build_with_batch_norm(config: Config, classes: int) -> nn.Module:
    """Builds the configured network as its library has it, with batch normalization."""
    return build_network(config.model_copy(update={"norm": NormConfig(name=BATCH_NORM)}), classes)


def freeze_network(config: Config, network: nn.Module) -> Frozen:
    """Fixes what the configuration says of a network. Raises UserError for a module that it does not have."""
    train = config.train
    try:
        return freeze_parts(network, train.freeze or [], train.freeze_statistics)
    except ValueError as error:
        raise UserError(f"train.{error}") from error


def maps_at(network: nn.Module, size: Size, kind: type[Normalizer] = CombinedNormalizer) -> dict[str, int]:
    """H * W of the maps that layers of a kind see of images of a size; nothing is computed."""
    return maps_of(skeleton(network), torch.empty(1, 3, *size, device="meta"), kind)


def check_batch_statistics(config: Config, ranks: Ranks, network: nn.Module) -> None:
    """Raises UserError for a layer that would take its batch statistics of one value per channel."""
    parts = config.train.accumulation * ranks.world_size
    size = min(config.training_sizes)
    if config.train.batch_size > parts:
        return
    for name, pixels in maps_at(network, size, RunningNormalizer).items():
        layer = network.get_submodule(name)
        assert isinstance(layer, RunningNormalizer)
        if layer.averages_for_one:
            continue
        if layer.of_batches and pixels == 1 and not layer.frozen and not (layer.sync and ranks.world_size > 1):
            raise UserError(
                f"train.batch_size={config.train.batch_size}: {name} would take its batch statistics of one value per "
                f"channel, of an image of {in_words(size)} pixels: {SINGLE_VALUE_CURE}"
            )


def build_to_device(config: Config, device: torch.device) -> ToDevice:
    """Builds what brings the loaders' images to the network's input."""
    return ToDevice(config.data.mean, config.data.std, config.train.channels_last, device)
