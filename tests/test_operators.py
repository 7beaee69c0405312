"""The C++ operators: schemas, what they refuse, and the graphs of torch.compile and torch.export that keep them."""

import copy

import pytest
import torch
from norm_cases import every_case, every_norm, images, randomized
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from en.norm import kernels
from en.norm.kernels import cpu

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


def calls(layer, x):
    """The operators that a layer runs, forward, backward and for its running averages, with their arguments."""
    assert kernels.native_parts() == "layers"
    plan = layer.native_plan()
    parameters = [part.detach() for part in plan.parameters]
    running = plan.running[:2] if plan.running and not plan.training else (None, None)
    forward = (x, parameters, *running, *plan.settings())
    y, _, batch, saved = torch.ops.en_norm.layer_forward.default(*forward)
    found = {"layer_forward": forward, "layer_backward": (y, x, saved, parameters, True, *plan.settings())}
    if plan.running and plan.training:
        found["track"] = (*map(torch.clone, plan.running[:2]), batch, 9, 0.1)
    return found


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_operators_do_what_their_schemas_and_their_fakes_say(case, training):
    name, options = case
    if name == "bn":
        return  # torch's own operator
    layer = randomized(name, 6, **options).train(training)
    for x in (images(2, 6, 3, 3), images(2, 6, 3, 3).to(memory_format=torch.channels_last)):
        for operator, arguments in calls(layer, x).items():
            if options:  # all of opcheck for each normalizer, and for its variants what they change: sizes
                if operator != "track":
                    fake = getattr(cpu, operator.replace("layer", "fake"))(*arguments)
                    assert described(fake) == described(getattr(torch.ops.en_norm, operator).default(*arguments))
            else:
                torch.library.opcheck(getattr(torch.ops.en_norm, operator).default, arguments, test_utils=UTILITIES)


def described(parts):
    flat = [part for entry in parts for part in (entry if isinstance(entry, list) else [entry])]
    return [(part.shape, part.stride(), part.dtype) for part in flat]


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
                        getattr(torch.ops.en_norm, operator).default(*arguments[:place], changed, *arguments[place + 1 :])


def wrong_for(part):
    """Too short, with gaps, and of another type."""
    return [part.flatten()[1:], torch.stack([part, part], -1)[..., 0], part.long()]


@pytest.mark.parametrize("form", ["layers", "nothing"])  # torch.compile has the passes for nothing
@every_norm
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torch_compile_makes_one_graph_with_the_same_result(name, training, form):
    torch._dynamo.reset()
    layer, x = randomized(name, 6).train(training), images(2, 6, 4, 4)
    twin, seen = copy.deepcopy(layer), []
    y = layer(x)
    graph = torch.compile(twin, fullgraph=True, backend=aot_autograd(fw_compiler=watched(seen)))(x)
    torch.testing.assert_close(graph, y)
    y.square().sum().backward(), graph.square().sum().backward()
    for expected, got in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-3)
    for expected, got in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected)
    assert ("en_norm.layer_forward" in " ".join(seen)) == (form == "layers" and name != "bn")


def watched(seen):
    """A compiler that changes nothing and notes which operators it is given."""

    def compiler(module, _):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module.forward)

    return compiler


@every_norm
def test_an_exported_layer_keeps_the_operator_and_the_result(name):
    assert kernels.native_parts() == "layers"
    layer, x = randomized(name, 6).eval(), images(2, 6, 4, 4)
    samples = torch.export.Dim("samples", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: samples},))
    assert name == "bn" or any("en_norm.layer_forward" in str(node.target) for node in program.graph.nodes)
    more = images(5, 6, 4, 4, seed=3)
    torch.testing.assert_close(program.module()(more), layer(more))
