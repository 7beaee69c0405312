"""The C++ operators do what their schemas say, and refuse what would have them read other memory."""

import pytest
import torch
from norm_cases import images, randomized
from torch import Tensor

from en.norm import kernels


def calls(layer, x):
    """The operators that a layer runs, forward and backward, with their arguments."""
    assert kernels.native_parts() == "layers"
    plan = layer.native_plan(pixels=1024)
    parameters = [part.detach() for part in plan.parameters]
    running = map(torch.clone, plan.running) if plan.running else (None, None, None)
    forward = (x, parameters, *running, 0.1, True, *plan.settings())
    y, _, saved = torch.ops.en_norm.layer_forward.default(*forward)
    return {"layer_forward": forward, "layer_backward": (y, x, saved, parameters, True, *plan.settings())}


@pytest.mark.parametrize("name", ["in", "ln", "gn", "sn", "en"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_operators_change_and_alias_only_what_their_schemas_say(name, training):
    layer = randomized(name, 6).train(training)
    for x in (images(2, 6, 3, 3), images(2, 6, 3, 3).to(memory_format=torch.channels_last)):
        for operator, arguments in calls(layer, x).items():
            call = getattr(torch.ops.en_norm, operator).default
            torch.library.opcheck(call, arguments, test_utils=("test_schema", "test_autograd_registration"))


@pytest.mark.parametrize("name", ["en", "sn"])
def test_an_operator_refuses_a_tensor_of_another_size_type_or_layout_instead_of_reading_beyond_it(name):
    layer, x = randomized(name, 6), images(2, 6, 3, 3)
    for operator, arguments in calls(layer, x).items():
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
