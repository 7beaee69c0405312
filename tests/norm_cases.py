"""The normalizers, variants of EN, layers with random parameters and inputs that the tests of the normalizers share."""

import pytest
import torch
from torch import Tensor, nn

from en.norm import NORMALIZERS, ExemplarNorm2d, Normalizer, RunningNormalizer, build_norm, norm_options

VARIANTS: list[dict[str, object]] = [
    {"convolution": False},
    {"activation": "relu"},
    {"gate_pixels": 10**4},
    {"gate_pixels": 10**4, "activation": "relu", "ratios": "pooled"},
    {"shared_affine": True},
    {"ratios": "relative"},
    {"ratios": "relative", "convolution": False, "gate_pixels": 10**4, "activation": "relu"},
    {"ratios": "pooled"},
    {"ratios": "static"},
    {"mix": "statistics"},
    {"mix": "statistics", "ratios": "static"},
    {"normalizers": ["ln", "bn"]},
    {"normalizers": ["in", "ln"]},
    {"normalizers": ["bn"]},
    {"normalizers": ["bn", "in", "ln", "gn"], "groups": 3},
    {"hidden": 7},
    {"reduction": 1},
    {"reduction": 4},
    {"eps": 1e-3, "momentum": 0.3},
    {"momentum": None},
    {"min_pixels": 10**4},
    {"min_pixels": 10**4, "mix": "statistics", "ratios": "static"},
    {"min_pixels": 10**4, "normalizers": ["in"]},
]
CASES = [(name, {}) for name in NORMALIZERS] + [("en", v) for v in VARIANTS]
CASES += [
    ("sn", {"normalizers": ["gn", "bn"]}),
    ("sn", {"min_pixels": 10**4}),
    ("ssn", {"steps": 1_000_000}),  # of which randomized() has a third behind it: see there
    ("ssn", {"steps": 250_000}),
    ("ssn", {"normalizers": ["in", "ln", "gn"], "groups": 2}),
    ("gn", {"groups": 2}),
    ("bn", {"momentum": None}),
    ("in", {"eps": 1e-2}),
]


def case_id(case: tuple[str, dict[str, object]]) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_norm = pytest.mark.parametrize("name", NORMALIZERS)
FORMS = {"layers": "1", "passes": "passes", "nothing": "0"}
"""What of a layer is C++, and the value of EN_NATIVE for it. With the passes alone, autograd runs between them."""

every_form = pytest.mark.parametrize("form", FORMS)


def randomized(name: str, channels: int, seed: int = 0, **options: object) -> Normalizer:
    """A normalizer whose parameters and buffers are all random, so that no 0 or 1 hides a term of the formula.

    `in` takes part unless `options` say otherwise, however small the tests' maps are.
    """
    generator = torch.Generator().manual_seed(seed)
    if "min_pixels" in norm_options(name):
        options = {"min_pixels": 1} | options
    layer = build_norm(name, channels, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if isinstance(layer, RunningNormalizer) and layer.track_running_stats:
            layer.running_mean.copy_(torch.randn(channels, generator=generator))
            layer.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
        if hasattr(layer, "trained_batches"):  # ratios of which none is 0, one is, and all but one are
            layer.trained_batches.fill_(300_000)
    return layer


def images(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[0], shape[1], 1, 1, generator=generator, dtype=dtype) + 0.5
    shift = torch.randn(shape[0], shape[1], 1, 1, generator=generator, dtype=dtype)
    return torch.randn(*shape, generator=generator, dtype=dtype) * scale + shift


PHOTOS = images(4, 3, 32, 32)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    )


def trained(model: nn.Module) -> nn.Module:
    """The network in evaluation, with random affine values and the averages of three batches."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias)
    for seed in range(3):
        model.train()(images(4, 3, 32, 32, seed=seed))
    return model.eval()


class Doubled(ExemplarNorm2d):
    """EN whose scale and shift are twice as large: a subclass computes something else than the plan it inherits."""

    def coefficients(self, mean: Tensor, var: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        scale, shift = super().coefficients(mean, var, pixels)
        return 2 * scale, 2 * shift


def parent_and_child() -> tuple[Normalizer, Doubled]:
    """Makes a layer of EN and one of Doubled with its weights."""
    parent, child = randomized("en", 6), Doubled(6, min_pixels=1)
    child.load_state_dict(parent.state_dict())
    return parent, child
