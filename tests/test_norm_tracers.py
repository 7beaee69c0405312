"""Networks with every normalizer under what looks into networks: tracers, exporters, fusers, modes, checkpointing."""

import pytest
import torch
from norm_cases import images, randomized
from timm.models.tiny_vit import ConvNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MIXTURES = ("sn", "en")
REFUSED = r"folded into a convolution|must match the size"
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def network(name, **options):
    """Convolution, normalizer, ReLU, twice, with random parameters, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), randomized(name, 6, **options), nn.ReLU()),
        *(nn.Conv2d(6, 6, 1, bias=False), randomized(name, 6, seed=1, **options)),
    )
    for layer in (model[0], model[3]):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 3)
    return model.eval()


@pytest.mark.parametrize("mix", ["outputs", "statistics"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_not_folded_into_a_convolution_as_batch_normalization_is(name, mix):
    layer = randomized(name, 6, **({"mix": mix} if name == "en" else {})).eval()
    with pytest.raises((ValueError, RuntimeError), match=REFUSED):
        fuse_conv_bn_eval(nn.Conv2d(3, 6, 1).eval(), layer)
    block = ConvNorm(3, 6).eval()
    block.bn = layer
    with pytest.raises((ValueError, RuntimeError), match=REFUSED):
        block.fuse()
    assert layer.eps == 1e-5 and str(layer.eps) == "1e-05"


def test_batch_normalization_is_folded_into_a_convolution():
    conv, layer, x = nn.Conv2d(3, 6, 1).eval(), randomized("bn", 6).eval(), images(2, 3, 4, 4)
    torch.testing.assert_close(fuse_conv_bn_eval(conv, layer)(x), layer(conv(x)), rtol=1e-4, atol=1e-5)
