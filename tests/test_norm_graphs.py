"""Layers in graphs of torch.compile on a CPU, with an operator between the passes or plain, against float64."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT
from norm_cases import images, parent_and_child, randomized
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from en.norm import build_norm, kernels, record_ratios

LARGE = {"min_pixels": 20, "gate_pixels": 20}
CASES = [
    ("en", {}),
    ("en", LARGE),  # thresholds that the maps of 4 x 4 are below, and those of 7 x 5 above
    ("en", {"normalizers": ["bn", "in", "ln", "gn"], "groups": 3, "activation": "relu", "shared_affine": True}),
    ("en", {"ratios": "static"}),
    ("en", {"mix": "statistics", "convolution": False}),
    ("en", {"normalizers": ["in", "ln"]}),
    ("sn", {"min_pixels": 20}),
    ("ssn", {"steps": 1_000_000}),
]


class Recorder:
    """A backend that notes of each graph of Dynamo's whether it has operators of this package."""

    def __init__(self):
        self.operators = []

    def __call__(self, graph, inputs):
        self.operators.append("en_norm" in str(graph.graph))
        return aot_eager(graph, inputs)


def compiled(call, **options):
    recorder = Recorder()
    return torch.compile(call, fullgraph=True, backend=recorder, **options), recorder


def close(got, want):
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=2e-4 * max(1.0, want.abs().max().item()))


def compare(call, layer, exact, x):
    """Output, all gradients and all buffers of a call of `layer` with those of its plain form in float64."""
    x = x.requires_grad_()
    twin = x.detach().double().requires_grad_()
    y, expected = call(x), exact.plain(twin)
    weights = images(*x.shape, seed=2)
    parts = [(x, twin), *zip(layer.parameters(), exact.parameters(), strict=True)]
    got = torch.autograd.grad(y, [part for part, _ in parts], weights, materialize_grads=True, allow_unused=True)
    want = torch.autograd.grad(
        expected, [part for _, part in parts], weights.double(), materialize_grads=True, allow_unused=True
    )
    for one, other in zip([y, *got, *layer.buffers()], [expected, *want, *exact.buffers()], strict=True):
        close(one, other)
    assert y.dtype == x.dtype


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_between_the_passes_gives_what_the_plain_form_gives_in_float64(case, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    name, options = case
    layer = randomized(name, 6, **options)
    exact = copy.deepcopy(layer).double()
    call, recorder = compiled(layer)
    compare(call, layer, exact, images(3, 6, 7, 5))
    compare(call, layer, exact, images(2, 6, 4, 4).to(memory_format=torch.channels_last))  # mixes what it did
    layer.eval(), exact.eval()
    compare(call, layer, exact, images(2, 6, 4, 4))
    assert recorder.operators == [True] * 3


def test_a_layer_that_was_never_trained_goes_by_the_maps_that_it_sees_whatever_their_size(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    layer = randomized("en", 6, **LARGE).eval()
    call, recorder = compiled(layer, dynamic=True)
    for shape in ((3, 6, 7, 5), (2, 6, 4, 4), (4, 6, 3, 9)):
        close(call(images(*shape)), copy.deepcopy(layer).double().plain(images(*shape).double()))
    assert set(recorder.operators) == {True} and not layer.trained_pixels


@pytest.mark.parametrize("name", ["bn", "in", "gn"])
def test_single_normalizers_are_torchs_operations(name, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    call, recorder = compiled(build_norm(name, 6))
    call(images(2, 6, 4, 4))
    assert recorder.operators == [False]


@pytest.mark.parametrize("word", ["eager", "0", "passes"])
def test_the_switch_keeps_operators_out_of_graphs(word, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, word)
    layer = randomized("en", 6)
    exact = copy.deepcopy(layer).double()
    call, recorder = compiled(layer)
    compare(call, layer, exact, images(3, 6, 4, 4))
    assert recorder.operators == [False] and kernels.native_in_graphs("cpu") == "nothing"
    assert kernels.native_parts() == {"eager": "layers", "0": "nothing", "passes": "passes"}[word]


class Labelled(torch.Tensor):
    """A tensor of another class, as libraries of quantized and of distributed tensors have."""


@pytest.mark.parametrize("where", ["input", "gate"])
def test_tensors_of_other_classes_get_the_plain_form(where, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    layer, x = randomized("en", 6).eval(), images(2, 6, 4, 4)
    exact = copy.deepcopy(layer).double().plain(x.double())
    if where == "input":
        x = x.as_subclass(Labelled)
    else:
        layer.gate[0].weight = nn.Parameter(layer.gate[0].weight.detach().as_subclass(Labelled))
    call, recorder = compiled(layer)
    close(call(x).as_subclass(torch.Tensor), exact)
    assert recorder.operators == [False]


def test_what_has_to_see_each_operation_gets_the_plain_form(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    layer, x = randomized("en", 6).eval(), images(2, 6, 4, 4)

    def loss(x):
        return layer(x).square().sum()

    for call, expected in (
        (torch.func.grad(loss), torch.func.grad(lambda x: layer.plain(x).square().sum())(x)),
        (torch.func.vmap(lambda x: layer(x[None])[0]), layer(x)),
    ):
        graph, recorder = compiled(call)
        torch.testing.assert_close(graph(x), expected, rtol=1e-3, atol=1e-3)
        assert recorder.operators == [False]
    for strict in (True, False):
        assert "en_norm" not in str(torch.export.export(layer, (x,), strict=strict).graph)


def test_a_subclass_with_coefficients_of_its_own_is_not_computed_by_its_parents_operator(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    x, (parent, child) = images(2, 6, 4, 4), parent_and_child()
    torch.testing.assert_close(compiled(child)[0](x), 2 * parent(x))


def test_ratios_of_a_compiled_layer_are_recorded(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    model, x = nn.Sequential(randomized("en", 6)).eval(), images(2, 6, 4, 4)
    found = []
    for call in (compiled(model)[0], model):
        with record_ratios(model) as record, torch.no_grad():
            call(x)
        found.append(record["0"])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("backend", "words"), [("eager", "differentiate twice"), ("aot_eager", "double backward")])
def test_a_second_derivative_through_the_operator_is_refused_instead_of_left_out(backend, words, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    x = images(2, 6, 4, 4).requires_grad_()
    y = torch.compile(randomized("en", 6), fullgraph=True, backend=backend)(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=words):
        first.square().sum().backward()


def test_a_graph_has_no_graphs_within_which_torchs_optimizer_for_ddp_would_refuse_to_cut(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    found = []
    call = torch.compile(randomized("en", 6), backend=lambda graph, inputs: found.append(graph) or graph)
    call(images(2, 6, 4, 4))
    assert [name for graph in found for name, _ in graph.named_modules() if name] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the compiler's own
@pytest.mark.slow(reason="Inductor compiles a network's forward and backward pass with g++")
def test_inductor_compiles_a_network_whose_steps_repeat_to_the_bit(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "graphs")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), randomized("en", 6), nn.ReLU()).to(memory_format=torch.channels_last)
    x = images(2, 3, 9, 9).to(memory_format=torch.channels_last)
    call, outcomes = torch.compile(network, fullgraph=True), []
    state = copy.deepcopy(network.state_dict())
    for forward in (call, call, network):
        network.load_state_dict(state)
        network.zero_grad(set_to_none=True)
        y = forward(x)
        y.square().mean().backward()
        outcomes.append(
            [y.detach(), *(part.grad for part in network.parameters()), *map(torch.clone, network.buffers())]
        )
    first, second, eager = outcomes
    for one, again, expected in zip(first, second, eager, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_a_graph_is_the_plain_form(tmp_path):
    code = """
import torch, warnings
from en.norm import build_norm, kernels
warnings.simplefilter("ignore")
layer, graphs = build_norm("en", 6).eval(), []
call = torch.compile(layer, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
call(torch.randn(2, 6, 4, 4))
print(kernels.native_in_graphs("cpu"), "en_norm" in str(graphs[0].graph))
"""
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path), kernels.SWITCH: "graphs"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "nothing False\n", done.stderr
