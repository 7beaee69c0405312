"""Sparse switchable normalization (Shao et al., SSN: Learning Sparse Switchable Normalization via SparsestMax, 2019).

That is CVPR 2019, arXiv 1903.03793. What is said of the authors' program was read in it; the rest is the paper's idea
from its abstract and our choice.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.types import Device

from en.norm import kernels, statistics
from en.norm.arguments import whole
from en.norm.switchable import SwitchableNorm2d

Round = tuple[list[int], float, list[float]]
"""Of sparsestmax: the ratios that are left, and the scale and direction by which they were moved away from equality."""

Found = tuple[list[float], list[Round]]
"""Ratios, and how they came about."""


class SparseSwitchableNorm2d(SwitchableNorm2d):
    """Switchable normalization whose ratios become sparse during training, until each layer keeps one normalizer.

    The formula is that of SwitchableNorm2d with w = sparsestmax(mean_weight; r) and w' = sparsestmax(var_weight; r): of
    all ratios that are at least r away from equal ones, those that are nearest to the weights. r grows with the batches
    that the layer was trained on, evenly from 0 (sparsemax) to 1 after `steps`, as in the authors' program; at
    sqrt((K - 1) / K), the distance of a single normalizer, at 82 % of `steps` for three, ratios are 0 or 1, and take no
    gradients. In evaluation a normalizer without a share is not computed, and bn alone is as fast as BN.

    Every forward pass in training with gradients counts as a batch: so do each micro-batch of an accumulated one, and
    the second pass of a checkpointed layer. The authors train the ratios at a tenth of the rate, without weight decay,
    clip their gradients and do not train them once they are 0 or 1; a layer cannot choose that (left out).

    Args:
        steps: batches over which r grows from 0 to 1; those of the whole training. The default is that of the paper's
            on ImageNet, 100 epochs of 256 images, rounded.
        normalizers, groups, eps, momentum, sync, device, dtype: as for SwitchableNorm2d.
    Parameters: as for SwitchableNorm2d. Buffers: `trained_batches` besides its own, which resuming needs.
    """

    deciding_options = (*(name for name in SwitchableNorm2d.deciding_options if name != "min_pixels"), "steps")

    trained_batches: Tensor

    def __init__(
        self,
        num_features: int,
        steps: int = 500_000,
        normalizers: Sequence[str] = ("bn", "in", "ln"),
        groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        published = 1  # `in` takes part on maps of every size
        super().__init__(num_features, normalizers, groups, eps, momentum, sync, published, None, device, dtype)
        self.steps = whole("steps", steps, most=2**40)
        self.register_buffer("trained_batches", torch.zeros((), dtype=torch.long, device=device))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.trained_batches.zero_()

    def ratios(self, dtype: torch.dtype) -> Tensor:
        """Those of the means and of the variances, (2, K)."""
        radius = (self.trained_batches.to(dtype) / self.steps).clamp(max=1)
        return sparsestmax(torch.stack([self.mean_weight, self.var_weight]).to(dtype), radius)

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        offsets, variances = self.statistics(mean, var, pixels)
        mean_ratios, var_ratios = self.ratios(mean.dtype)[:, None].expand(2, *offsets.shape[:2]).unbind()
        self.observe(mean_ratios.detach())
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        return statistics.mix_statistics(mean_ratios, var_ratios, offsets, variances, weight, bias, self.added_eps)

    def observe(self, ratios: Tensor) -> None:
        if self.counts:  # an empty batch, too: other ranks may have had samples
            self.trained_batches.add_(1)

    @property
    def counts(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def remembered(self) -> Mapping[str, Tensor]:
        return {"trained_batches": self.trained_batches.clone()} if self.counts else {}

    def native_plan(self, pixels: int) -> kernels.NativePlan | None:
        weights, names = (self.mean_weight, self.var_weight), self.normalizers
        if torch.compiler.is_compiling() or self.waits_for_a_look():
            logits = logarithm(self.ratios(self.mean_weight.dtype)).unbind()
        else:  # number by number: some microseconds instead of some hundred
            radius = min(1.0, int(self.trained_batches) / self.steps)
            found = [sparsest(tuple(part.tolist()), radius) for part in weights]
            kept = [k for k in range(len(names)) if self.training or any(ratios[k] for ratios, _ in found)]
            names = tuple(names[k] for k in kept)
            alone = len(kept) == 1  # whose ratio is 1, whatever its logit
            logits = tuple(part[:1] for part in weights) if alone else _SparseLogits.apply(found, kept, *weights)
        parameters = (self.weight, self.bias, *logits)
        return self.plan_with(pixels, parameters, "static", mix_statistics=True, origins=weights, normalizers=names)

    def waits_for_a_look(self) -> bool:
        """Tells whether to look at numbers would wait for a GPU in each step, or break a CUDA graph."""
        return self.mean_weight.is_cuda and (self.training or torch.cuda.is_current_stream_capturing())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steps={self.steps}"


def sparsestmax(weights: Tensor, radius: Tensor) -> Tensor:
    """Projects `weights` (M, K) onto the rows of ratios at a distance of at least `radius` from 1/K each.

    Ratios are projected onto the simplex and, where they are too near to equal ones among those that are left, moved
    away from these; what becomes negative is left out, and so on. Equal weights have no direction to go, and stay.
    """
    k = weights.shape[-1]
    ratios, support = projected(weights)
    for _ in range(k - 1):
        count = support.sum(-1, keepdim=True).to(weights.dtype)
        centre = support / count
        room = (radius**2 - (1 / count - 1 / k)).clamp(min=0).sqrt()
        away = ratios - centre
        square = away.square().sum(-1, keepdim=True)
        near = torch.logical_and(square.detach() < room**2, square.detach() > 0)
        moved = centre + away * (room * torch.where(near, square, 1).rsqrt())
        ratios, support = projected(torch.where(near, moved, ratios))
    return ratios + 0 * weights.detach().sum(-1, keepdim=True)  # not a number where a weight is not finite


def projected(values: Tensor) -> tuple[Tensor, Tensor]:
    """The point of the simplex nearest to each row of values (M, K), and which of its ratios are above 0."""
    known = values.detach()
    ordered = known.sort(-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    support = known > ((ordered.cumsum(-1) - 1) / count).amax(-1, keepdim=True)
    left = support.sum(-1, keepdim=True)
    excess = ((values * support).sum(-1, keepdim=True) - 1) / left
    ratios = torch.where(left == 1, 1, values - excess)
    return torch.where(support, ratios, 0), support


def logarithm(ratios: Tensor) -> Tensor:
    """Returns the logits of ratios: minus infinity for 0, where no gradient flows."""
    used = ratios > 0
    return torch.where(used, torch.where(used, ratios, 1).log(), -math.inf)


class _SparseLogits(torch.autograd.Function):
    """The logarithms of what sparsest() found for vectors of weights, of the ratios `kept`, and with its gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, found: list[Found], kept: list[int], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.found, ctx.kept = found, kept  # type: ignore[attr-defined]
        return tuple(
            part.new_tensor([math.log(ratios[k]) if ratios[k] > 0 else -math.inf for k in kept])
            for part, (ratios, _) in zip(weights, found, strict=True)
        )

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept: list[int] = ctx.kept  # type: ignore[attr-defined]
        pairs = zip(grads, ctx.found, strict=True)  # type: ignore[attr-defined]
        return None, None, *(grad.new_tensor(pulled_back(grad.tolist(), kept, *each)) for grad, each in pairs)


@functools.lru_cache(maxsize=1024)
def sparsest(weights: tuple[float, ...], radius: float) -> Found:
    """sparsestmax of one vector, and how it came about; in evaluation it is that of the pass before."""
    k, values = len(weights), list(weights)
    rounds: list[Round] = []
    if not math.isfinite(sum(weights)):  # of a training that diverged, of which its loss is to tell
        return [math.nan] * k, [(list(range(k)), 1.0, [0.0] * k)]
    while True:
        ratios, support = nearest(values)
        count = len(support)
        square = sum((ratios[i] - 1 / count) ** 2 for i in support)
        room = radius**2 - (1 / count - 1 / k)
        if not 0 < square < room:
            return ratios, [*rounds, (support, 1.0, [0.0] * k)]
        scale, distance = math.sqrt(room / square), math.sqrt(square)
        direction = [(ratio - 1 / count) / distance for ratio in ratios]
        rounds.append((support, scale, direction))
        values = [1 / count + scale * (ratio - 1 / count) for ratio in ratios]
        if min(values[i] for i in support) > 0:
            return [values[i] if i in support else 0.0 for i in range(k)], rounds
        values = [values[i] if i in support else -math.inf for i in range(k)]


def nearest(values: list[float]) -> tuple[list[float], list[int]]:
    """The point of the simplex nearest to `values`, and which of its ratios are above 0."""
    total, threshold = 0.0, -math.inf
    for number, value in enumerate(sorted(values, reverse=True), start=1):
        total += value
        threshold = max(threshold, (total - 1) / number)
    support = [i for i, value in enumerate(values) if value > threshold]
    excess = (sum(values[i] for i in support) - 1) / len(support)
    share = (lambda i: 1.0) if len(support) == 1 else (lambda i: values[i] - excess)
    return [share(i) if i in support else 0.0 for i in range(len(values))], support


def pulled_back(grads: list[float], kept: list[int], ratios: list[float], rounds: list[Round]) -> list[float]:
    """The gradient of the weights from that of the logarithms of the ratios `kept`; all others are 0."""
    found = [0.0] * len(ratios)
    for k, grad in zip(kept, grads, strict=True):
        found[k] = grad / ratios[k] if ratios[k] > 0 else 0.0
    for support, scale, direction in reversed(rounds):
        along = sum(found[i] * direction[i] for i in support) if scale > 1 else 0.0
        found = [scale * (found[i] - along * direction[i]) if i in support else 0.0 for i in range(len(found))]
        mean = sum(found) / len(support)
        found = [found[i] - mean if i in support else 0.0 for i in range(len(found))]
    return found
