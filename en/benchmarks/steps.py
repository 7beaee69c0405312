"""One training or inference step of a layer or a network with a normalizer: what is timed, and its peak memory."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from en.data.views import IGNORE
from en.norm import build_norm, replace_norm

REFERENCE, TORCH_GROUP_NORM = "nn.BatchNorm2d", "nn.GroupNorm"
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
CLASSES = 1000
LABEL_PIXELS = ("fcn_resnet50",)  # networks of torchvision's that do, with an auxiliary head
PIXEL_CLASSES, AUX_WEIGHT = 150, 0.4
SMALL = "a small network"

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What all normalizers of one comparison share.

    Attributes:
        model: layer, SMALL, or a network of torchvision.
        shape: N, C, H, W of the input.
        layout, dtype, device: of the input; autocast where the weights are of another type.
        compiled: whether torch.compile is used.
        mode: train (forward, backward) or infer (forward, evaluation mode).
        backend: of torch.compile.
        weights: their type.
    """

    model: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    device: str
    compiled: bool
    mode: str
    backend: str = "inductor"
    weights: str = "float32"


def step_of(setting: Setting, name: str) -> tuple[Step, int]:
    """One step with a normalizer on random images made beforehand, and the bytes of weights and images."""
    torch.manual_seed(0)
    layout, device = LAYOUTS[setting.layout], setting.device
    dtype, weights = DTYPES[setting.dtype], DTYPES[setting.weights]
    network = network_of(setting, name).to(device=device, dtype=weights, memory_format=layout)  # type: ignore[call-overload]
    network.train(setting.mode == "train")
    images = torch.randn(setting.shape, device=device).contiguous(memory_format=layout)
    forward = torch.compile(network, backend=setting.backend) if setting.compiled else network
    autocast = torch.autocast(device, dtype, enabled=dtype != weights)
    if setting.model == "layer":
        upstream = {torch.float32: torch.randn_like(images)}
        images = images.to(dtype).requires_grad_(setting.mode == "train")
        labels = None
    elif setting.model in LABEL_PIXELS:
        pixels = images[:, 0]
        labels = torch.arange(pixels.numel(), device=device).view(pixels.shape) % PIXEL_CLASSES
    else:
        labels = torch.arange(setting.shape[0], device=device) % CLASSES

    def infer() -> None:
        with torch.no_grad(), autocast:
            forward(images)

    def train() -> None:
        with autocast:
            output: Any = forward(images)  # a tensor, or one for each head
        if labels is None:
            if output.dtype not in upstream:
                upstream[output.dtype] = upstream[torch.float32].to(output.dtype)
            torch.autograd.backward(output, upstream[output.dtype])
            images.grad = None
        elif isinstance(output, dict):
            torch.autograd.backward(loss_of_pixels(output, labels))
        else:
            torch.autograd.backward(F.cross_entropy(output.float(), labels))
        network.zero_grad(set_to_none=True)

    held = sum(part.numel() * part.element_size() for part in (images, *network.parameters(), *network.buffers()))
    return train if setting.mode == "train" else infer, held


def loss_of_pixels(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Adds the cross-entropy of the auxiliary head, by the task's default weight, to that of the head.

    Args:
        outputs: (N, C, h, w) by head, as torchvision calls them, which are enlarged to the labels' size.
        labels: (N, H, W).
    """
    losses = {
        name: F.cross_entropy(
            F.interpolate(logits.float(), labels.shape[1:], mode="bilinear"), labels.long(), ignore_index=IGNORE
        )
        for name, logits in outputs.items()
    }
    return losses["out"] + AUX_WEIGHT * losses["aux"]


def network_of(setting: Setting, name: str) -> nn.Module:
    """The setting's layer, or its network with a normalizer put in."""
    channels = setting.shape[1]
    if setting.model == "layer":
        return layer_of(name, channels)
    network = small_network() if setting.model == SMALL else torchvision_network(setting.model)
    return network if name == REFERENCE else replace_norm(network, name)


def layer_of(name: str, channels: int) -> nn.Module:
    """A normalizer of the registry, or one of torch's own."""
    if name == REFERENCE:
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(gcd(32, channels), channels) if name == TORCH_GROUP_NORM else build_norm(name, channels)


def torchvision_network(name: str) -> nn.Module:
    import torchvision

    if name in LABEL_PIXELS:
        pixels = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=PIXEL_CLASSES, aux_loss=True
        )
        return cast(nn.Module, pixels)
    network: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
    return network


def small_network(width: int = 8, classes: int = CLASSES) -> nn.Module:
    """Two convolutions: for trying out on a CPU what is meant for a GPU."""
    first = (nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
    second = (nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


def captured(step: Step, pool: Any, stream: Any = None) -> Step:
    """The step as a CUDA graph, recorded after runs on a stream of its own, as torch's documentation asks.

    Args:
        pool: memory, torch.cuda.graph_pool_handle(), that graphs share which never run at the same time and whose
            results nobody reads.
        stream: to record on. Graphs that run at the same time need one each: torch gives cuBLAS memory to work in by
            stream, which graphs recorded on the same one share.
    """
    aside = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        step()
    return graph.replay


def peak_memory(setting: Setting, name: str) -> int:
    """Bytes that a step needs at most at one time, weights and images included, by torch's record of allocations."""
    gc.collect()
    return on_gpu(setting, name) if setting.device == "cuda" else on_cpu(setting, name)


def on_gpu(setting: Setting, name: str) -> int:
    before = torch.cuda.memory_allocated()
    step, _ = step_of(setting, name)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def on_cpu(setting: Setting, name: str) -> int:
    """By torch's profiler, which sees all but what the C library keeps for itself."""
    step, held = step_of(setting, name)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    results = profile.profiler
    assert results is not None and results.kineto_results is not None
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held + peak
