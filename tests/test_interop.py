"""The normalizers in networks and scripts of other people, by those libraries' own functions."""

import timm
from norm_cases import every_norm
from timm.optim import param_groups_weight_decay

from en.norm import Normalizer, replace_norm


@every_norm
def test_a_library_that_decays_whatever_has_two_axes_leaves_every_weight_and_bias_of_a_normalizer_out(name):
    model = replace_norm(timm.create_model("resnet10t"), name)
    spared, decayed = ({id(p) for p in group["params"]} for group in param_groups_weight_decay(model, 0.1))
    layers = [layer for layer in model.modules() if isinstance(layer, Normalizer)]
    affine = {id(p) for layer in layers for p in (layer.weight, layer.bias)}
    assert affine and affine <= spared and not affine & decayed
