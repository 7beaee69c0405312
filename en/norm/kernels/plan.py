"""What a layer offers to be run whole, in one call of C++ on a CPU or in a few launches on a GPU."""

import functools
import os
import warnings
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from en.norm.statistics import moments_dtype

SWITCH = "EN_NATIVE"
"""Environment variable that says what runs as this package's own code, by one of WORDS."""

WORDS = {
    "nothing": ("0", "false", "no", "off", "nothing", ""),
    "passes": ("passes",),
    "layers": ("1", "true", "yes", "on", "layers"),
}
IN_GRAPHS = {"graphs": True, "eager": False}
"""Further words for layers: with operators of this package in graphs of torch.compile, or without."""

# By their numbers in cpu/*.hpp.
STATISTICS = {"in": 0, "running": 1, "bn": 2, "ln": 3, "gn": 3}
OWN = frozenset({Tensor, nn.Parameter})
"""Classes of tensors that kernels take: others may not know them."""

RATIOS = ("correlation", "static")
ACTIVATIONS = ("tanh", "relu")

Settings = tuple[list[int], list[int], int, int, int, int, bool, float, float]
"""kinds, groups, absent, source, reduced, activation, statistics, eps, gate_scale of the operators."""


def chosen_parts(default: str) -> str:
    """Names what is to run as this package's own code: layers, passes or nothing, by EN_NATIVE where that is set."""
    value = os.environ.get(SWITCH)
    return default if value is None else meaning(value) or default


def are_in_graphs(default: bool) -> bool:
    """Tells whether graphs of torch.compile are to have operators of this package, by EN_NATIVE where that says it."""
    return IN_GRAPHS.get(os.environ.get(SWITCH, "").strip().lower(), default)


@functools.cache
def meaning(value: str) -> str:
    """Reads what a value of EN_NATIVE asks for; nothing, '', and a warning for one that is none of the words."""
    word = value.strip().lower()
    if word in IN_GRAPHS:
        return "layers"
    for parts, words in WORDS.items():
        if word in words:
            return parts
    allowed = ", ".join(word for words in (*WORDS.values(), IN_GRAPHS) for word in words if word)
    warnings.warn(f"{SWITCH}={value!r} is ignored: expected one of {allowed}", RuntimeWarning, stacklevel=2)
    return ""


class NativePlan(NamedTuple):
    """What a layer computes: which statistics, where their ratios come from, what is mixed by them.

    Attributes:
        normalizers, groups, eps: as for CombinedNormalizer.
        parameters: weight, bias, then what the ratios need. correlation: the convolution's kernel, weight and bias of
            the gate's first layer and of its second; static: logits, and those of the variances where they have ratios
            of their own.
        ratios: one of RATIOS.
        mix_statistics: as SN does; else the normalized maps are mixed.
        training: batch statistics rather than the running averages.
        running: mean, variance and count of batches, where bn is among the normalizers.
        momentum: as for CombinedNormalizer.
        activation: of the gate.
        gate_scale: what the gate's hidden units are multiplied by.
        reduced: G, groups of the convolution.
        absent: place of the normalizer whose ratio is 0, whatever its logit; -1 for none.
        thresholds: H * W of the maps of training from which on `absent` is -1, and from which on `gate_scale` is 1: a
            graph has the plan for maps of 0 pixels, and asks trained_pixels when it runs. None: graphs do without.
        origins: parameters of the layer, where it computed any of the above from them: what second derivatives are of.
    """

    normalizers: tuple[str, ...]
    groups: int
    eps: float
    parameters: tuple[Tensor, ...]
    ratios: str
    mix_statistics: bool
    training: bool = False
    running: tuple[Tensor, Tensor, Tensor] | None = None
    momentum: float | None = None
    activation: str = "tanh"
    gate_scale: float = 1.0
    reduced: int = 1
    absent: int = -1
    thresholds: tuple[int, int] | None = None
    origins: tuple[Tensor, ...] = ()

    @property
    def is_batch_norm(self) -> bool:
        """True for batch normalization with running averages and nothing else."""
        return self.normalizers == ("bn",) and self.mix_statistics and not self.training

    def takes(self, x: Tensor) -> bool:
        """Tells whether parameters and averages have the type of x's moments."""
        dtype = moments_dtype(x.dtype)
        return all(part.dtype == dtype for part in (*self.parameters, *(self.running or ())[:2]))

    def batch_norm(self, x: Tensor) -> Tensor:
        """The normalized x, by torch's own kernel, where that is all that the plan says."""
        assert self.running is not None
        mean, var, _ = self.running
        weight, bias = (part.flatten() for part in self.parameters[:2])
        return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)

    def settings(self) -> Settings:
        """All but tensors, as the operators take it."""
        return (
            [STATISTICS["running" if name == "bn" and not self.training else name] for name in self.normalizers],
            [self.groups if name == "gn" else 1 for name in self.normalizers],
            self.absent,
            RATIOS.index(self.ratios),
            self.reduced,
            ACTIVATIONS.index(self.activation),
            self.mix_statistics,
            self.eps,
            self.gate_scale,
        )
