"""A network that learns, with its optimizer, scaler and averages."""

import copy
import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from en.config.schema import Config
from en.distributed.ranks import Ranks
from en.errors import UserError
from en.runs.completeness import refuse_incomplete
from en.runs.contents import Checkpoint, RankState, Weights, load_weights
from en.training.optimizer import build_optimizer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Ranks keep their own running averages between evaluations; torch renamed the argument for it.
LEAVE_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


@dataclass
class Learner:
    """Holds a network that learns, its optimizer, scaler and averages.

    Attributes:
        model: the bare network.
        forward: the network as it is called: wrapped for the ranks, compiled.
        optimizer, scaler: SGD, and float16's scaler of gradients.
        ema: averages of the weights over the steps, where they are kept.
        precision: of autocast.
        clip_norm: largest norm of the whole gradient; None: no clipping.
        scale_was_lowered: whether the scaler left out the last step because its scale was too large.
    """

    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    precision: torch.dtype
    clip_norm: float | None
    scale_was_lowered: bool = False

    def __call__(self, images: Tensor) -> Any:
        """The network's output in the configured precision."""
        with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.forward(images)

    def sharing_gradients(self, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch's forward and backward pass: only in a step's last one do ranks exchange gradients."""
        inner = getattr(self.forward, "_orig_mod", self.forward)
        return inner.no_sync() if isinstance(inner, DistributedDataParallel) and not last else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss."""
        torch.autograd.backward(self.scaler.scale(loss))

    @torch.no_grad()
    def divide_gradients(self, divisor: Tensor) -> None:
        """Divides the whole gradient by a number on the device."""
        torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], divisor)

    def gradient_norm(self) -> Tensor | None:
        """The norm of the whole gradient, on the device, which is clipped to clip_norm, where that is set.

        None with float16's scaler, which looks at the gradients itself.
        """
        scaled = self.scaler.is_enabled()
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            return None if scaled else norm
        if scaled:
            return None
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def step(self, lr: float) -> None:
        """Takes the optimizer's step at a learning rate, and the averages' step after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scale_was_lowered = self.scaler.is_enabled() and self.scaler.get_scale() < scale
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)

    def copy_buffers(self) -> list[Tensor]:
        """The network's buffers as they are now."""
        return [buffer.clone() for buffer in self.model.buffers()]

    def undo(self, buffers: list[Tensor]) -> None:
        """Drops the gradient of a step that is left out, and what its forward pass did to the network's buffers."""
        if self.scaler.is_enabled():
            # The scaler closes its account of a step only after it has looked at the gradients.
            if self.clip_norm is None:
                self.scaler.unscale_(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def networks(self) -> list[nn.Module]:
        """The bare network and, where they are kept, its averages."""
        return [self.model, self.ema.module] if self.ema else [self.model]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": whole_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
        }

    def buffers(self) -> list[Weights]:
        """The floating-point buffers of each network, on the CPU: what a rank has of its own within an epoch."""
        return [{name: value.cpu() for name, value in floating_buffers(network)} for network in self.networks()]

    @torch.no_grad()
    def load_state_dict(self, saved: Checkpoint, ranks: Ranks, path: Path) -> None:
        """Takes a checkpoint's state.

        With another number of ranks than it was written with, each takes the mean of their running averages. The
        optimizer's settings are the configuration's, not the checkpoint's.

        Raises: UserError when it does not fit or a part is missing; RunError for weights that are not finite.
        """
        refuse_incomplete(saved, path)
        load_weights(self.model, saved.model, path)
        if self.ema:
            # Averages that are only kept from here on begin at the weights.
            load_weights(self.ema.module, saved.ema or saved.model, path)
        try:
            restore_buffers(self, saved.ranks, ranks)
            check_momenta(self, saved)
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": saved.optimizer["state"], "param_groups": groups})
            if self.scaler.is_enabled() and saved.scaler:
                self.scaler.load_state_dict(saved.scaler)
        except Exception as error:  # torch raises errors of many kinds for what it did not save
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{path}: expected the state of this configuration's optimizer and ranks: {detail}"
            ) from error


def restore_buffers(learner: Learner, states: list[RankState], ranks: Ranks) -> None:
    """Gives a rank its own running averages, or the mean of all ranks' where there are more or fewer of them now."""
    chosen = [states[ranks.rank]] if len(states) == ranks.world_size else states
    for index, network in enumerate(learner.networks() if states else []):
        for name, value in floating_buffers(network):
            buffers = [state["buffers"][min(index, len(state["buffers"]) - 1)][name] for state in chosen]
            if any(buffer.dtype != value.dtype or buffer.shape != value.shape for buffer in buffers):
                raise ValueError(f"{name}: expected {tuple(value.shape)} of {value.dtype}")
            value.copy_(torch.stack(buffers).mean(0))


def check_momenta(learner: Learner, saved: Checkpoint) -> None:
    """Raises ValueError for a momentum that is missing, not of its parameter's type and shape, or not finite."""
    states: dict[int, dict[str, Tensor | None]] = saved.optimizer["state"]
    parameters = parameters_of(learner.optimizer)
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    finished = saved.position.epoch > 0 or saved.last_evaluation.step > 0
    has_steps = finished or any(state["losses"]["steps"] for state in saved.ranks)
    for number, (group, parameter) in enumerate(parameters):
        if has_steps and group["momentum"] and number not in states:
            raise ValueError(f"optimizer.state has no momentum of {names[parameter]}, number {number}")
    for number, state in states.items():
        parameter, momentum = parameters[number][1], state["momentum_buffer"]
        if momentum is None:
            continue
        if momentum.dtype != parameter.dtype or momentum.shape != parameter.shape:
            found, expected = ([part.dtype, *part.shape] for part in (momentum, parameter))
            raise ValueError(f"momentum {number}: expected {expected}, found {found}")
        if not momentum.isfinite().all():
            raise ValueError(f"momentum {number} is not finite")


def parameters_of(optimizer: torch.optim.SGD) -> list[tuple[dict[str, Any], nn.Parameter]]:
    """Lists an optimizer's parameters, each with its group, in the order of their numbers in its state."""
    return [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]


def whole_state(optimizer: torch.optim.SGD) -> dict[str, Any]:
    """Completes an optimizer's state_dict: a parameter's momentum is None before its first step, not missing.

    So a checkpoint that lacks one is told from a run whose first steps were left out.
    """
    state: dict[str, Any] = optimizer.state_dict()
    none = {number: {"momentum_buffer": None} for number in range(len(parameters_of(optimizer)))}
    return state | {"state": none | state["state"]}


def floating_buffers(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in network.named_buffers() if value.is_floating_point()]


def build_learner(config: Config, model: nn.Module, device: torch.device, ranks: Ranks) -> Learner:
    """The network on its device with optimizer, scaler and averages, wrapped for the ranks and, if asked, compiled."""
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
        optimizer=build_optimizer(model, **config.optim.model_dump(), head=config.task.head(model)),
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16"),
        ema=None if decay is None else ModelEmaV3(model, decay=decay),
        precision=PRECISIONS[config.train.precision],
        clip_norm=config.train.clip_norm,
    )


def settle_buckets(config: Config, model: nn.Module, wrapped: nn.Module, device: torch.device) -> None:
    """Has DistributedDataParallel lay out its buckets of gradients for good, by a backward pass on blank images.

    It does so after its first backward pass, and from three ranks on, the order in which gradients are added up depends
    on it: without this, the first step of a resumed run would differ in its last bits from that of an untouched one.
    """
    before = copy.deepcopy(model.state_dict())
    size, dtype = config.training_resolution.at(0), PRECISIONS[config.train.precision]
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.zeros(2, 3, *size, device=device).contiguous(memory_format=memory_format)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = wrapped.train()(images)
    # A task's network may have several outputs, in training above all.
    torch.autograd.backward([part.float().sum() for part in tree_leaves(output) if isinstance(part, Tensor)])
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
