"""What learns: a network, its optimizer, scaler and averages."""

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from en.config.schema import Config
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.runs import checkpoint
from en.runs.checkpoint import Checkpoint, RankState, Weights
from en.training.optimizer import build_optimizer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

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

    def buffers(self) -> list[Weights]:
        """The floating-point buffers of each network, on the CPU: what each rank has of its own in the middle of an epoch."""
        return [{name: value.cpu() for name, value in floating_buffers(network)} for network in self.networks()]

    @torch.no_grad()
    def load_state_dict(self, saved: Checkpoint, ranks: Ranks, origin: str) -> None:
        """Takes a checkpoint's state.

        With another number of ranks than it was written with, each takes the mean of their running averages. What the
        configuration says of the optimizer holds, not what the checkpoint does.

        Raises: UserError when it does not fit; RunError for weights that are not finite.
        """
        path = Path(origin)
        checkpoint.load_weights(self.model, saved.model, path)
        if self.ema:
            checkpoint.load_weights(self.ema.module, saved.ema or saved.model, path)
        try:
            restore_buffers(self, saved.ranks, ranks)
            check_momenta(self.optimizer, saved.optimizer["state"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": saved.optimizer["state"], "param_groups": groups})
            if self.scaler.is_enabled() and saved.scaler:
                self.scaler.load_state_dict(saved.scaler)
        except Exception as error:  # torch raises errors of many kinds for what it did not save
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{path}: expected the state of this configuration's optimizer and ranks: {detail}") from error


def restore_buffers(learner: Learner, states: list[RankState], ranks: Ranks) -> None:
    """Gives a rank its own running averages, or the mean of all ranks' where there are more or fewer of them now."""
    chosen = [states[ranks.rank]] if len(states) == ranks.world_size else states
    for index, network in enumerate(learner.networks() if states else []):
        for name, value in floating_buffers(network):
            buffers = [state["buffers"][min(index, len(state["buffers"]) - 1)][name] for state in chosen]
            if any(buffer.dtype != value.dtype or buffer.shape != value.shape for buffer in buffers):
                raise ValueError(f"{name}: expected {tuple(value.shape)} of {value.dtype}")
            value.copy_(torch.stack(buffers).mean(0))


def check_momenta(optimizer: torch.optim.SGD, states: dict[int, dict[str, Tensor | None]]) -> None:
    """Raises ValueError for a momentum that is not of its parameter's type and shape, or not finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in states.items():
        parameter, momentum = parameters[number], state["momentum_buffer"]
        if momentum is None:
            continue
        if momentum.dtype != parameter.dtype or momentum.shape != parameter.shape:
            found, expected = ([part.dtype, *part.shape] for part in (momentum, parameter))
            raise ValueError(f"momentum {number}: expected {expected}, found {found}")
        if not momentum.isfinite().all():
            raise ValueError(f"momentum {number} is not finite")


def floating_buffers(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in network.named_buffers() if value.is_floating_point()]


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
        optimizer=build_optimizer(model, **config.optim.model_dump()),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16"),
        ema=None if decay is None else ModelEmaV3(model, decay=decay),
    )


def settle_buckets(config: Config, model: nn.Module, wrapped: nn.Module, device: torch.device) -> None:
    """Has DistributedDataParallel lay out its buckets of gradients for good, by a backward pass on blank images.

    It does so after its first backward pass, and from three ranks on, the order in which gradients are added up depends on it:
    without this, the first step of a resumed run would differ in its last bits from the same step of an untouched one.
    """
    before = copy.deepcopy(model.state_dict())
    size, dtype = config.training_resolution.at(0), PRECISIONS[config.train.precision]
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.zeros(2, 3, size, size, device=device).contiguous(memory_format=memory_format)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = wrapped.train()(images)
    torch.autograd.backward(output.float().sum())
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
