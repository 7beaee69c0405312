"""Networks with every normalizer under what looks into networks: tracers, exporters, fusers, modes, checkpointing."""

import copy
import io

import pytest
import torch
import torchvision
from norm_cases import every_case, every_norm, images, randomized
from onnxruntime import InferenceSession
from timm.models.tiny_vit import ConvNorm
from torch import fx, nn
from torch.ao.quantization import fuse_modules
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.fx.experimental.optimization import fuse
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from en.norm import Normalizer, replace_norm

MIXTURES = ("sn", "en")
REFUSED = r"folded into a convolution|must match the size"
jit_is_deprecated = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def network(name, **options):
    """Convolution, normalizer, ReLU, twice, with random parameters, in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), randomized(name, 6, **options), nn.ReLU()),
        *(nn.Conv2d(6, 6, 1, bias=False), randomized(name, 6, seed=1, **options)),
    )
    for layer in (model[0], model[3]):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape) / 3)
    return model.eval()


def same_step(model, twin, x, owner=None, tolerance=1e-4):
    """The same output, gradients and buffers, after one step of a network and of what was made of its twin."""
    owner = twin if owner is None else owner
    y, z = model(x), twin(x)
    y.square().sum().backward(), z.square().sum().backward()
    torch.testing.assert_close(z, y, rtol=tolerance, atol=tolerance)
    for part, other in zip(model.parameters(), owner.parameters(), strict=True):
        room = 1e-3 * max(1.0, part.grad.abs().max().item())
        torch.testing.assert_close(other.grad, part.grad, rtol=0, atol=room)
    torch.testing.assert_close(list(owner.buffers()), list(model.buffers()))


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


@every_norm
def test_fusers_of_whole_networks_keep_what_the_network_computes(name):
    model, x = network(name), images(2, 3, 4, 4)
    expected = model(x)
    torch.testing.assert_close(fuse(model)(x), expected, rtol=1e-4, atol=1e-4)
    if name in MIXTURES:
        with pytest.raises((NotImplementedError, AssertionError), match="did not find fuser method"):
            fuse_modules(model, ["0", "1"])


@every_norm
@every_mode
def test_torch_fx_takes_a_normalizer_for_one_node_and_keeps_buffers_and_gradients(name, training):
    model, x = network(name).train(training), images(2, 3, 4, 4)
    twin = fx.symbolic_trace(copy.deepcopy(model))
    assert [node.target for node in twin.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3", "4"]
    same_step(model, twin, x)


def test_torchvisions_feature_extractor_finds_replaced_normalizers_by_name():
    model, x = replace_norm(torchvision.models.resnet18(), "en").eval(), images(1, 3, 32, 32)
    found = create_feature_extractor(model, ["layer1.0.bn1", "layer4"])(x)
    kept = []
    model.layer1[0].bn1.register_forward_hook(lambda *arguments: kept.append(arguments[-1]))
    model(x)
    assert torch.equal(found["layer1.0.bn1"], kept[0]) and found["layer4"].shape == (1, 512, 1, 1)


@jit_is_deprecated
@every_case
def test_a_traced_network_computes_the_same_for_another_input_and_another_batch_size(case):
    name, options = case
    model = network(name, **options)
    traced = torch.jit.trace(model, images(2, 3, 4, 4))
    for shape in [(2, 3, 4, 4), (5, 3, 4, 4), (1, 3, 7, 9)]:
        x = images(*shape, seed=3)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)
    assert "en_norm" not in str(traced.inlined_graph)


@jit_is_deprecated
@every_norm
def test_a_network_traced_in_training_goes_on_taking_running_averages(name):
    model = network(name).train()
    traced = torch.jit.trace(copy.deepcopy(model), images(2, 3, 4, 4), check_trace=False)
    reference = copy.deepcopy(model)
    reference(images(2, 3, 4, 4))  # which tracing has run
    same_step(reference, traced, images(5, 3, 4, 4, seed=3))


def of_onnx_runtime(exported, x):
    """The output of a file's bytes for x (N, 3, H, W)."""
    session = InferenceSession(exported, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(found)


@jit_is_deprecated
@every_norm
def test_onnx_runtime_computes_what_the_older_exporter_wrote_for_any_number_of_images(name):
    model, file = network(name), io.BytesIO()
    settings = {"input_names": ["x"], "dynamic_axes": {"x": {0: "images"}}}
    torch.onnx.export(model, (images(2, 3, 4, 4),), file, dynamo=False, **settings)
    x = images(5, 3, 4, 4, seed=7)
    torch.testing.assert_close(of_onnx_runtime(file.getvalue(), x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::DeprecationWarning")  # the exporter's own
@pytest.mark.parametrize("name", ["bn", "en"])
def test_onnx_runtime_computes_what_the_newer_exporter_wrote_for_any_size(name):
    model, auto = (
        network(name, **({"min_pixels": 20, "gate_pixels": 20} if name == "en" else {})),
        torch.export.Dim.AUTO,
    )
    sizes = ({0: auto, 2: auto, 3: auto},)
    program = torch.onnx.export(model, (images(2, 3, 5, 6),), dynamo=True, dynamic_shapes=sizes, verbose=False)
    for shape in [(5, 3, 9, 11), (3, 3, 4, 4)]:  # on the second, `in` has no ratio
        x = images(*shape, seed=7)
        found = of_onnx_runtime(program.model_proto.SerializeToString(), x)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


@every_norm
@pytest.mark.parametrize("kind", ["real", "fake", "symbolic"])
def test_make_fx_sees_each_operation(name, kind):
    model = network(name)
    graph = make_fx(model, tracing_mode=kind, _allow_non_fake_inputs=True)(images(2, 3, 4, 4))
    assert not [node for node in graph.graph.nodes if "en_norm" in str(node.target)]
    for samples in (2, 5) if kind == "symbolic" else (2,):
        x = images(samples, 3, 4, 4, seed=3)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


class Seen(TorchDispatchMode):
    """Notes the operators that pass through it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@every_norm
@every_mode
def test_a_dispatch_mode_sees_torchs_operations_alone_and_results_are_the_same(name, training):
    model, x = network(name).train(training), images(2, 3, 4, 4)
    twin, mode = copy.deepcopy(model), Seen()

    def seen(x):
        with mode:
            return twin(x)

    same_step(model, seen, x, twin)
    assert not [name for name in mode.names if name.startswith("en_norm")]
    with FlopCounterMode(display=False) as flops:
        model(x)
    assert flops.get_flop_counts()["Global"][torch.ops.aten.convolution] == 2 * (3 * 9 * 6 + 6 * 6) * 2 * 16


def wrapped(wrapper, model, x):
    """The network's output for x, in training, inside something that is used to train networks."""
    match wrapper:
        case "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)
        case "profiler":
            with profile(activities=[ProfilerActivity.CPU]):
                return model(x)
        case "device":
            with torch.device("meta"):
                return model(x)
        case "ddp":
            return DistributedDataParallel(model)(x)
        case "fsdp2":
            return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))(x)
        case _:
            return checkpoint(model, x.clone().requires_grad_(), use_reentrant=wrapper == "reentrant")


@every_norm
@pytest.mark.parametrize("wrapper", ["autocast", "profiler", "device", "ddp", "fsdp2", "reentrant", "checkpoint"])
def test_what_networks_are_trained_with_leaves_the_native_form_and_its_results(name, wrapper, one_rank, monkeypatch):
    model, x = network(name).train(), images(2, 3, 4, 4)
    twin = copy.deepcopy(model)
    expected = model(x)
    expected.square().sum().backward()
    monkeypatch.setattr(Normalizer, "plain", None)  # which would have to be called
    y = wrapped(wrapper, twin, x)
    y.float().square().sum().backward()
    room = 0.2 if wrapper == "autocast" else 1e-4
    torch.testing.assert_close(y.float(), expected, rtol=room, atol=room)
    if wrapper != "autocast":
        for part, other in zip(model.parameters(), twin.parameters(), strict=True):
            grad = other.grad.full_tensor() if wrapper == "fsdp2" else other.grad
            room = 1e-3 * max(1.0, part.grad.abs().max().item())
            torch.testing.assert_close(grad, part.grad, rtol=0, atol=room)
