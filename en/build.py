"""A configuration made into loaders, a network and what learns."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from en.config.reading import flatten
from en.config.schema import Config
from en.data import LOADERS, Augmentation, ImageLoader, Reading, Share
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.models import build_model, check_output
from en.runs.checkpoint import Data
from en.runs.provenance import code_digest
from en.training.optimizer import build_optimizer
from en.training.schedule import resolution, training_sides

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

OF_A_NODE = ("run_dir", "resume", "data.root", "data.workers")  # keys that may differ from node to node

# Ranks keep their own running averages between evaluations; torch renamed the argument that says so.
LEAVE_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


@dataclass
class Learner:
    """What learns: the bare network, the network as it is called (wrapped, compiled), optimizer, scaler and averages."""

    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None

    def networks(self) -> list[nn.Module]:
        """The bare network and, where they are kept, its averages."""
        return [self.model, self.ema.module] if self.ema else [self.model]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }


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


def describe_data(config: Config, loaders: dict[str, ImageLoader]) -> Data:
    """What a checkpoint keeps of the data: the train and val splits' images."""
    train, val = loaders["train"], loaders["val"]
    return {
        "name": train.name,
        "loader": config.data.loader,
        "train": {"samples": train.samples, "digest": train.digest},
        "val": {"samples": val.samples, "digest": val.digest},
    }


def ranks_facts(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """What ranks that work together have to have in common: configuration, code, torch and data."""
    keys = {key: value for key, value in flatten(config.model_dump()).items() if key not in OF_A_NODE}
    return keys | {"code": code_digest(), "torch": str(torch.__version__)} | flatten({"data": dict(data)})


def build_network(config: Config, classes: int) -> nn.Module:
    """The configured network, initialized from the seed alone.

    Raises: UserError for one that cannot be built, does not take the configured sizes, or is no classifier.
    """
    torch.manual_seed(config.seed)
    model, norm = config.model, config.norm
    try:
        network = build_model(model.name, classes, norm.name, norm.options, model.zero_init_last_gamma, model.dropout)
    except ValueError as error:
        named = ", ".join(f"norm.{key}={value}" for key, value in norm.model_dump().items())
        raise UserError(f"model.name={model.name}, {named}: {error}") from error
    try:
        check_output(network, classes, training_sides(config), [config.eval_resolution])
    except ValueError as error:
        raise UserError(f"model.name={model.name}, data.resolution={config.data.resolution}: {error}") from error
    return network


def build_learner(config: Config, model: nn.Module, device: torch.device, ranks: Ranks) -> Learner:
    """The network on its device with optimizer, scaler and averages, wrapped for the ranks and compiled if asked for."""
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    forward: nn.Module = model
    if dist.is_initialized():
        devices = [device.index] if device.type == "cuda" else None
        options: dict[str, Any] = {LEAVE_BUFFERS: False, "gradient_as_bucket_view": True}
        forward = DistributedDataParallel(model, devices, **options)
        settle_buckets(config, model, forward, device)
    if config.train.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    decay = config.train.ema_decay
    return Learner(
        model=model,
        forward=forward,
        optimizer=build_optimizer(model, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16"),
        ema=None if decay is None else ModelEmaV3(model, decay=decay),
    )


def settle_buckets(config: Config, model: nn.Module, wrapped: nn.Module, device: torch.device) -> None:
    """Has DistributedDataParallel lay out its buckets of gradients for good, by a backward pass on blank images.

    It does so after its first backward pass, and from three ranks on, the order in which gradients are added up depends on it:
    without this, the first step of a resumed run would differ in its last bits from the same step of an untouched one.
    """
    before = copy.deepcopy(model.state_dict())
    size, dtype = resolution(config, 0), PRECISIONS[config.train.precision]
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.zeros(2, 3, size, size, device=device).contiguous(memory_format=memory_format)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = wrapped.train()(images)
    torch.autograd.backward(output.float().sum())
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
