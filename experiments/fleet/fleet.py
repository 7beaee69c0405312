"""Many trainings of a small network on one GPU, all at the same time, each step of each a CUDA graph.

Small networks leave most of a GPU idle and most of the time to Python. So every run's step, from the choice of its
images to the optimizer's, is recorded once and replayed on a stream of the run's own; all that it needs, order, crops
and learning rates, lies on the GPU beforehand, and a counter there says which step it is. On a CPU steps are called.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from en.benchmarks.steps import captured
from en.benchmarks.timing import finish
from en.errors import UserError
from en.norm import param_groups, replace_norm
from en.progress import Progress
from experiments.fleet.pictures import Pictures, Split

MOMENTUM, WARMUP_EPOCHS = 0.9, 1.0
EVALUATED = 500  # images at a time
STEPS_QUEUED = 50


@dataclass(frozen=True)
class Recipe:
    """What all runs of a comparison share.

    Attributes:
        network: of torchvision.
        small_stem: whether a ResNet begins with a convolution of 3 x 3 that keeps the size, as is usual at 32 pixels.
        pixels: side of the network's input.
        crop: the least share of an image's area in a training crop.
        batch: images in a step of the optimizer.
        rate, decay: of SGD with Nesterov's momentum.
    """

    network: str
    small_stem: bool
    pixels: int
    epochs: int
    batch: int
    rate: float
    decay: float
    crop: float = 0.5

    def build(self, classes: int) -> nn.Module:
        import torchvision

        network: nn.Module = torchvision.models.get_model(self.network, num_classes=classes)
        if self.small_stem and not isinstance(network, torchvision.models.ResNet):
            raise UserError(f"--small-stem: expected a ResNet, found --network {self.network}")
        if self.small_stem:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        return network

    def refuse_unusable(self, name: str, options: Mapping[str, Any], classes: int) -> None:
        """Raises UserError for a network that the fleet cannot train with a normalizer."""
        try:
            network = replace_norm(self.build(classes), name, **options)
            found = network(torch.zeros(2, 3, self.pixels, self.pixels))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--network {self.network}: with {name} at {self.pixels} pixels: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (2, classes):
            raise UserError(f"--network {self.network}: expected one output of {classes} classes")

    def rates(self, steps: int, device: str) -> Tensor:
        """The rate of each step, (epochs steps,): a linear warm-up and a cosine."""
        epoch = torch.arange(self.epochs * steps, dtype=torch.float64) / steps
        cosine = 0.5 * (1 + torch.cos(math.pi * epoch / self.epochs))
        warm = (epoch + 1 / steps) / min(WARMUP_EPOCHS, self.epochs / 2)
        return (self.rate * torch.minimum(warm, cosine)).float().to(device)


@dataclass(frozen=True)
class Member:
    """One run: a normalizer by its name in tables and in the registry, the images of one statistic, and a seed."""

    label: str
    name: str
    options: Mapping[str, Any]
    images: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """Which images each step takes, (steps, batch), and how they are cropped and flipped, (steps, batch, 2, 3)."""

    chosen: Tensor
    crops: Tensor

    @classmethod
    def drawn(cls, images: int, recipe: Recipe, seed: int, device: str) -> "Plan":
        """Whole batches of every epoch's own order. The same for all normalizers of a seed."""
        random = torch.Generator().manual_seed(1_000_003 + seed)
        whole = images // recipe.batch * recipe.batch
        orders = [torch.randperm(images, generator=random)[:whole] for _ in range(recipe.epochs)]
        chosen = torch.cat(orders).view(-1, recipe.batch)
        area, ratio, across, down, flip = torch.rand(5, *chosen.shape, generator=random)
        area = recipe.crop + (1 - recipe.crop) * area
        ratio = (math.log(4 / 3) * (2 * ratio - 1)).exp().sqrt()
        width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
        crops = torch.zeros(*chosen.shape, 2, 3)
        crops[..., 0, 0] = torch.where(flip < 0.5, -width, width)
        crops[..., 0, 2] = (1 - width) * (2 * across - 1)
        crops[..., 1, 1] = height
        crops[..., 1, 2] = (1 - height) * (2 * down - 1)
        return cls(chosen.to(device), crops.to(device))


class FleetRun:
    """One training.

    Attributes:
        network: that is trained.
        device: its type.
        losses: (steps,), the training loss of each step done.
    """

    def __init__(self, member: Member, recipe: Recipe, pictures: Pictures, plan: Plan, scaling: "Scaling") -> None:
        self.member, self.recipe = member, recipe
        self._train, self._plan, self._scaling = pictures.train, plan, scaling
        self.device = pictures.train.images.device.type
        torch.manual_seed(member.seed)
        network = replace_norm(recipe.build(pictures.classes), member.name, **member.options)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps = len(plan.chosen)
        self._rates = recipe.rates(steps // recipe.epochs, self.device)
        self._rate = torch.tensor(recipe.rate, device=self.device)
        groups = param_groups(self.network, recipe.decay)
        self._optimizer = torch.optim.SGD(groups, self._rate, momentum=MOMENTUM, nesterov=True, fused=True)
        self._counter = torch.zeros(1, dtype=torch.long, device=self.device)
        self.losses = torch.full((steps,), math.nan, device=self.device)
        self._start = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.advance = self._step

    def record(self) -> None:
        """Makes a CUDA graph of the step, on the stream that replays it; the run stands at its start again afterwards.

        Torch has 32 streams: runs beyond that share one, and with it take turns.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        replay = captured(self._step, torch.cuda.graph_pool_handle(), stream)

        def advance() -> None:
            with torch.cuda.stream(stream):
                replay()

        self.advance = advance
        self.restart()

    def restart(self, epochs: int | None = None) -> None:
        """Sets everything to what it was before the first step, perhaps for a training of fewer epochs."""
        with torch.no_grad():
            if epochs is not None:
                fewer = replace(self.recipe, epochs=epochs)
                rates = fewer.rates(len(self._rates) // self.recipe.epochs, self.device)
                self._rates[: len(rates)] = rates
            for key, value in self.network.state_dict().items():
                value.copy_(self._start[key])
            for state in self._optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"].zero_()
            self._counter.zero_()
            self.losses.fill_(math.nan)

    def _step(self) -> None:
        at = self._counter
        chosen = self._plan.chosen.index_select(0, at)[0]
        images = self._scaling(self._train.images.index_select(0, chosen))
        shape = (len(chosen), 3, self.recipe.pixels, self.recipe.pixels)
        grid = F.affine_grid(self._plan.crops.index_select(0, at)[0], list(shape), align_corners=False)
        images = F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
        images = images.contiguous(memory_format=torch.channels_last)
        labels, size = self._train.labels.index_select(0, chosen), self.member.images
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(1, device=self.device)
        for part, targets in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
                outputs = self.network(part)
            loss = F.cross_entropy(outputs.float(), targets) * (size / len(chosen))
            torch.autograd.backward(loss)
            total += loss.detach()
        self._rate.copy_(self._rates.index_select(0, at)[0])
        self._optimizer.step()
        self.losses.index_copy_(0, at, total)
        at += 1

    @torch.no_grad()
    def top1(self, val: Split) -> float:
        """Computes top-1 of the images `val`, in percent, from the whole image."""
        self.network.eval()
        right = 0
        for images, labels in zip(torch.split(val.images, EVALUATED), torch.split(val.labels, EVALUATED), strict=True):
            scaled = self._scaling(images)
            if scaled.shape[-1] != self.recipe.pixels:
                scaled = F.interpolate(scaled, self.recipe.pixels, mode="bilinear", antialias=True)
            with torch.autocast(self.device, torch.bfloat16):
                outputs = self.network(scaled.contiguous(memory_format=torch.channels_last))
            right += int((outputs.argmax(1) == labels).sum())
        self.network.train()
        return 100 * right / len(val.labels)


@dataclass(frozen=True)
class Scaling:
    """From uint8 to the network's input: each channel with mean 0 and deviation 1 over the training images."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, train: Split) -> "Scaling":
        sample = train.images[:2000].double()
        std, mean = torch.std_mean(sample, (0, 2, 3), keepdim=True)
        return cls(mean.float(), std.float())

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


def fleet_of(members: list[Member], recipe: Recipe, pictures: Pictures) -> list[FleetRun]:
    """The runs, at their start, recorded on a GPU."""
    device = pictures.train.images.device.type
    scaling, plans = Scaling.of(pictures.train), {}
    for seed in {member.seed for member in members}:
        plans[seed] = Plan.drawn(len(pictures.train.labels), recipe, seed, device)
    runs = [FleetRun(member, recipe, pictures, plans[member.seed], scaling) for member in members]
    if device == "cuda":
        with Progress("recording", len(runs)) as progress:
            for run in runs:
                run.record()
                progress.advance()
        finish(device)
    return runs


def lockstep(runs: list[FleetRun], steps: int) -> None:
    """Advances all runs together, step by step; waits for the GPU now and then, so that not all is queued at once."""
    for step in range(steps):
        for run in runs:
            run.advance()
        if step % STEPS_QUEUED == 0 or step == steps - 1:
            finish(runs[0].device)
