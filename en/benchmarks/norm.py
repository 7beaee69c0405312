"""Every registered normalizer against nn.BatchNorm2d: a single layer, and training and inference steps of networks."""

from dataclasses import asdict
from pathlib import Path

import torch

from en.benchmarks.steps import REFERENCE, Setting, peak_memory, step_of
from en.benchmarks.timing import Measured, hardware, interleaved, median, show, write
from en.norm import NORMALIZERS

SHAPES = {  # N, C, H, W of the input, on a CPU and on a GPU
    "layer": ((16, 256, 32, 32), (256, 256, 56, 56)),
    "resnet50": ((16, 3, 128, 128), (256, 3, 224, 224)),
    "shufflenet_v2_x1_0": ((64, 3, 64, 64), (256, 3, 224, 224)),
    "fcn_resnet50": ((4, 3, 128, 128), (16, 3, 512, 512)),
}
NAMES = (REFERENCE, *NORMALIZERS)


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
    report: list[Measured] = []
    for model in models:
        shape = SHAPES[model][device == "cuda"]
        for mode in modes:
            settings = [Setting(model, shape, layout, dtype, device, compiled, mode) for layout in layouts]
            report += compare(settings, rounds)
        if model != "layer" and not compiled:
            report += compare_memory(Setting(model, shape, layouts[-1], dtype, device, compiled, "train"))
    write(out, {"hardware": where, "rounds": rounds, "rows": report})


def compare(settings: list[Setting], rounds: int) -> list[Measured]:
    """Measures a step's milliseconds by normalizer and layout, and the ratio of the best layouts."""
    times: dict[str, dict[str, float]] = {}
    for setting in settings:
        label = f"{setting.model}, {setting.mode}, {setting.layout}"
        cases = {name: step_of(setting, name)[0] for name in NAMES}
        repeat = 20 if setting.model == "layer" else 1
        for name, values in interleaved(cases, rounds, label, repeat=repeat, device=setting.device).items():
            times.setdefault(name, {})[setting.layout] = 1000 * median(values)
    best = min(times[REFERENCE].values())
    rows = [
        {"normalizer": name, **{f"{k} ms": v for k, v in t.items()}, "best / BN": min(t.values()) / best}
        for name, t in times.items()
    ]
    setting = settings[0]
    show(f"{setting.model}, {setting.mode}, input {' x '.join(map(str, setting.shape))}", rows)
    return [{**asdict(setting), "layout": "best of " + ", ".join(s.layout for s in settings), **row} for row in rows]


def compare_memory(setting: Setting) -> list[Measured]:
    """Measures a training step's peak memory, weights and images included."""
    peaks = {name: peak_memory(setting, name) for name in NAMES}
    rows = [
        {"normalizer": name, "peak MiB": peak / 2**20, "/ BN": peak / peaks[REFERENCE]} for name, peak in peaks.items()
    ]
    show(f"{setting.model}, peak memory of a training step, {setting.layout}", rows)
    return [{**asdict(setting), "measure": "peak memory", **row} for row in rows]
