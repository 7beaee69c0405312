"""Every registered normalizer against nn.BatchNorm2d: a single layer, and training and inference steps of networks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from en.benchmarks.timing import Row, hardware, interleaved, median, show, write
from en.models import build_model
from en.norm import NORMALIZERS, build_norm

REFERENCE = "nn.BatchNorm2d"
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSES = 1000
SHAPES = {  # N, C, H, W of the input, on a CPU and on a GPU
    "layer": ((16, 256, 32, 32), (256, 256, 56, 56)),
    "resnet50": ((16, 3, 128, 128), (256, 3, 224, 224)),
    "shufflenet_v2_x1_0": ((64, 3, 64, 64), (256, 3, 224, 224)),
}


@dataclass(frozen=True)
class Setting:
    """What all normalizers of one comparison share.

    Attributes:
        model: layer, or a network of torchvision.
        shape: N, C, H, W of the input.
        layout, dtype, device: of input and weights; bfloat16 is autocast.
        compiled: whether torch.compile is used.
        mode: train (forward, backward) or infer (forward, evaluation mode).
    """

    model: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    device: str
    compiled: bool
    mode: str


def benchmark_norm(
    models: list[str],
    modes: list[str],
    layouts: list[str],
    dtype: str,
    compiled: bool,
    device: str,
    rounds: int,
    out: Path | None,
) -> None:
    """Prints a table per model and mode, and one of peak memory; writes everything to `out` as JSON."""
    where = hardware(device, torch.get_num_threads())
    print(f"{where}, {dtype}, {'compiled' if compiled else 'eager'}, median of {rounds} interleaved rounds")
    report: list[Row] = []
    for model in models:
        shape = SHAPES[model][device == "cuda"]
        for mode in modes:
            settings = [Setting(model, shape, layout, dtype, device, compiled, mode) for layout in layouts]
            report += compare(settings, rounds)
        if model != "layer" and not compiled:
            report += compare_memory(Setting(model, shape, layouts[-1], dtype, device, compiled, "train"))
    write(out, {"hardware": where, "rounds": rounds, "rows": report})


def compare(settings: list[Setting], rounds: int) -> list[Row]:
    """Measures a step's milliseconds by normalizer and layout, and the ratio of the best layouts."""
    times: dict[str, dict[str, float]] = {}
    for setting in settings:
        label = f"{setting.model}, {setting.mode}, {setting.layout}"
        cases = {name: step_of(setting, name)[0] for name in names()}
        for name, values in interleaved(cases, rounds, label, repeat=20 if setting.model == "layer" else 1).items():
            times.setdefault(name, {})[setting.layout] = 1000 * median(values)
    best = min(times[REFERENCE].values())
    rows = [
        {"normalizer": name, **{f"{k} ms": v for k, v in t.items()}, "best / BN": min(t.values()) / best}
        for name, t in times.items()
    ]
    setting = settings[0]
    show(f"{setting.model}, {setting.mode}, input {' x '.join(map(str, setting.shape))}", rows)
    return [{**asdict(setting), "layout": "best of " + ", ".join(s.layout for s in settings), **row} for row in rows]


def names() -> list[str]:
    return [REFERENCE, *NORMALIZERS]


def step_of(setting: Setting, name: str) -> tuple[Callable[[], object], int]:
    """One step with a normalizer on random images made beforehand, and the bytes of weights and images."""
    torch.manual_seed(0)
    layout, device = LAYOUTS[setting.layout], setting.device
    network = network_of(setting, name).to(device=device, memory_format=layout)  # type: ignore[call-overload]
    network.train(setting.mode == "train")
    images = torch.randn(setting.shape, device=device).contiguous(memory_format=layout)
    forward = torch.compile(network) if setting.compiled else network
    autocast = torch.autocast(device, DTYPES[setting.dtype], enabled=setting.dtype != "float32")
    if setting.model == "layer":
        images, upstream = images.to(DTYPES[setting.dtype]), torch.randn_like(images).to(DTYPES[setting.dtype])
        images.requires_grad_(setting.mode == "train")
        labels = None
    else:
        labels = torch.arange(setting.shape[0], device=device) % CLASSES

    def infer() -> None:
        with torch.no_grad(), autocast:
            forward(images)

    def train() -> None:
        with autocast:
            output: Tensor = forward(images)
        if labels is None:
            torch.autograd.backward(output, upstream)
            images.grad = None
        else:
            torch.autograd.backward(F.cross_entropy(output.float(), labels))
        network.zero_grad(set_to_none=True)

    held = sum(part.numel() * part.element_size() for part in (images, *network.parameters(), *network.buffers()))
    return train if setting.mode == "train" else infer, held


def network_of(setting: Setting, name: str) -> nn.Module:
    channels = setting.shape[1]
    if setting.model == "layer":
        return nn.BatchNorm2d(channels) if name == REFERENCE else build_norm(name, channels)
    if name == REFERENCE:
        network: nn.Module = getattr(torchvision.models, setting.model)(num_classes=CLASSES)
        return network
    return build_model(setting.model, CLASSES, name)


def compare_memory(setting: Setting) -> list[Row]:
    """Measures a training step's peak memory, weights and images included."""
    peaks = {name: peak_memory(setting, name) for name in names()}
    rows = [
        {"normalizer": name, "peak MiB": peak / 2**20, "/ BN": peak / peaks[REFERENCE]} for name, peak in peaks.items()
    ]
    show(f"{setting.model}, peak memory of a training step, {setting.layout}", rows)
    return [{**asdict(setting), "measure": "peak memory", **row} for row in rows]


def peak_memory(setting: Setting, name: str) -> int:
    """Bytes by torch's record of every allocation, which excludes what the C library keeps for itself."""
    step, held = step_of(setting, name)
    step()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
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
