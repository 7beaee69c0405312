"""The C++ operators do what their schemas say, and refuse what would have them read other memory."""

import pytest
import torch
from norm_cases import images, randomized
from torch import Tensor

from en.norm import kernels
from en.norm.kernels import graphs


def calls(layer, x):
    """The operators that a layer runs, forward and backward, with their arguments."""
    assert kernels.native_parts() == "layers"
    plan = layer.native_plan(pixels=1024)
    parameters = [part.detach() for part in plan.parameters]
    running = map(torch.clone, plan.running) if plan.running else (None, None, None)
    forward = (x, parameters, *running, 0.1, True, *plan.settings())
    y, _, saved = torch.ops.en_norm.layer_forward.default(*forward)
    return {"layer_forward": forward, "layer_backward": (y, x, saved, parameters, True, *plan.settings())}


def calls_in_graphs(layer, x):
    """The same of those in graphs of torch.compile."""
    plan = layer.native_plan(pixels=0)
    parameters, settings = [part.detach() for part in plan.parameters], (*plan.settings(), *plan.thresholds)
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    running = (None, None) if layer.training else plan.running[:2]
    forward = (mean, var, parameters, *running, layer.trained_pixels, 9, True, *settings)
    scale, shift, _, _, decided, saved = torch.ops.en_norm.coefficients.default(*forward)
    backward = (scale, shift, mean, var, saved, decided, parameters, 9, *settings)
    return {"coefficients": forward, "coefficients_backward": backward}


@pytest.mark.parametrize("name", ["in", "ln", "gn", "sn", "en"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_operators_change_and_alias_only_what_their_schemas_say(name, training):
    layer = randomized(name, 6).train(training)
    for x in (images(2, 6, 3, 3), images(2, 6, 3, 3).to(memory_format=torch.channels_last)):
        for operator, arguments in calls(layer, x).items():
            call = getattr(torch.ops.en_norm, operator).default
            torch.library.opcheck(call, arguments, test_utils=("test_schema", "test_autograd_registration"))


@pytest.mark.parametrize("case", [("en", {}), ("en", {"normalizers": ["bn", "gn"], "groups": 3}), ("sn", {})], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_operators_of_graphs_give_what_they_say_they_will(case, training):
    graphs.register()  # else the first graph does
    layer = randomized(case[0], 6, **case[1]).train(training)
    for operator, arguments in calls_in_graphs(layer, images(2, 6, 3, 3)).items():
        call = getattr(torch.ops.en_norm, operator).default
        torch.library.opcheck(call, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["en", "sn"])
def test_an_operator_refuses_a_tensor_of_another_size_type_or_layout_instead_of_reading_beyond_it(name):
    layer, x = randomized(name, 6), images(2, 6, 3, 3)
    for operator, arguments in {**calls(layer, x), **calls_in_graphs(layer.eval(), x)}.items():
        for place, value in enumerate(arguments):
            parts = value if isinstance(value, list) else [value]
            for number, part in enumerate(parts):
                for wrong in wrong_for(part) if isinstance(part, Tensor) else []:
                    changed = [*parts[:number], wrong, *parts[number + 1 :]] if isinstance(value, list) else wrong
                    with pytest.raises(RuntimeError, match=r"en_norm: .*expected"):
                        getattr(torch.ops.en_norm, operator).default(
                            *arguments[:place], changed, *arguments[place + 1 :]
                        )


def wrong_for(part):
    """Too short, with gaps where there may be any, and of another type."""
    gaps = [torch.stack([part, part], -1)[..., 0]] if part.dim() else []
    return [part.flatten()[1:], *gaps, part.int()]
