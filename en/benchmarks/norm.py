"""Every registered normalizer against nn.BatchNorm2d: a single layer, and training and inference steps of networks."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from en.benchmarks.steps import LAYOUTS, REFERENCE, SMALL, Setting, network_of, peak_memory, step_of
from en.benchmarks.timing import Measured, hardware, interleaved, median, show, write

SHAPES = {  # N, C, H, W of the input, on a CPU and on a GPU
    "layer": ((16, 256, 32, 32), (256, 256, 56, 56)),
    "resnet50": ((16, 3, 128, 128), (256, 3, 224, 224)),
    "shufflenet_v2_x1_0": ((64, 3, 64, 64), (256, 3, 224, 224)),
    "fcn_resnet50": ((4, 3, 128, 128), (16, 3, 512, 512)),
}
SHAPES[SMALL] = ((4, 3, 16, 16), (4, 3, 16, 16))
Shape = tuple[int, int, int, int]


def benchmark_norm(
    models: list[str],
    modes: list[str],
    layouts: list[str],
    norms: list[str],
    dtype: str,
    compiled: bool,
    device: str,
    threads: list[int],
    rounds: int,
    out: Path | None,
) -> None:
    """Prints tables per model: steps by mode and number of threads, what each map size adds, peak memory.

    Times with one thread on a CPU are the processor's, which other programs change little; others are the clock's.

    Args:
        norms: names of the registry, beside nn.BatchNorm2d.
        threads: numbers of CPU threads to measure with, in turn.
        out: a file for everything, as JSON.
    """
    report: list[Measured] = []
    where = ""
    for count in threads:
        torch.set_num_threads(count)
        where = hardware(device, count)
        print(f"\n{where}, {dtype}, {'compiled' if compiled else 'eager'}, median of {rounds} interleaved rounds")
        for model in models:
            shape = SHAPES[model][device == "cuda"]
            for mode in modes:
                settings = [Setting(model, shape, layout, dtype, device, compiled, mode) for layout in layouts]
                report += with_threads(count, compare(settings, norms, rounds))
                if model != "layer" and not compiled and device == "cpu":
                    report += with_threads(count, compare_maps(settings[-1], norms, rounds))
    for model in models if not compiled else ():
        if model != "layer":
            shape = SHAPES[model][device == "cuda"]
            report += compare_memory(Setting(model, shape, layouts[-1], dtype, device, compiled, "train"), norms)
    write(out, {"hardware": where, "rounds": rounds, "rows": report})


def with_threads(count: int, rows: list[Measured]) -> list[Measured]:
    return [{"threads": count, **row} for row in rows]


def compare(settings: list[Setting], norms: Sequence[str], rounds: int) -> list[Measured]:
    """Measures a step's milliseconds by normalizer and layout, and the ratio of the best layouts.

    `/ BN` of a layout is the median of the rounds' ratios, each of two steps that ran one after the other.
    """
    found: dict[str, dict[str, float]] = {}
    for setting in settings:
        label = f"{setting.model}, {setting.mode}, {setting.layout}"
        seconds = measure(setting, (REFERENCE, *norms), rounds, label)
        for name, values in seconds.items():
            row = found.setdefault(name, {})
            row[f"{setting.layout} ms"] = 1000 * median(values)
            row[f"{setting.layout} / BN"] = median([a / b for a, b in zip(values, seconds[REFERENCE], strict=True)])
    best = {name: min(v for key, v in row.items() if key.endswith("ms")) for name, row in found.items()}
    rows = [{"normalizer": name, **row, "best / BN": best[name] / best[REFERENCE]} for name, row in found.items()]
    setting = settings[0]
    show(f"{setting.model}, {setting.mode}, input {' x '.join(map(str, setting.shape))}", rows)
    return [{**asdict(setting), "layout": "best of " + ", ".join(s.layout for s in settings), **row} for row in rows]


def measure(setting: Setting, names: Sequence[str], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of a step with each normalizer by round."""
    cases = {name: step_of(setting, name)[0] for name in names}
    repeat = 20 if setting.model == "layer" else 1
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return interleaved(cases, rounds, label, repeat=repeat, device=setting.device, clock=clock)


def compare_maps(setting: Setting, norms: Sequence[str], rounds: int) -> list[Measured]:
    """Measures what the layers of a network add to nn.BatchNorm2d's step, by the size of their maps.

    Each layer runs alone, on an input of the shape that it has in the network: caches are warmer than there.
    """
    layers = layers_of(setting)
    added: dict[tuple[int, int], dict[str, float]] = {}
    for shape, count in sorted(layers.items(), key=lambda item: (-item[0][2], item[0][1])):
        alone = replace(setting, model="layer", shape=shape)
        seconds = measure(alone, (REFERENCE, *norms), rounds, f"{setting.mode}, {' x '.join(map(str, shape))}")
        row = added.setdefault(shape[2:], {"layers": 0, "BN ms": 0, **dict.fromkeys(norms, 0)})
        row["layers"] += count
        row["BN ms"] += count * 1000 * median(seconds[REFERENCE])
        for name in norms:
            pairs = zip(seconds[name], seconds[REFERENCE], strict=True)
            row[name] += count * 1000 * median([a - b for a, b in pairs])
    rows: list[Measured] = [{"maps": f"{height} x {width}", **row} for (height, width), row in added.items()]
    rows.append({"maps": "all", **{key: sum(row[key] for row in rows) for key in rows[0] if key != "maps"}})
    show(f"{setting.model}, {setting.mode}, {setting.layout}: what layers add to BN's, ms, by their maps", rows)
    return [{**asdict(setting), "measure": "added by maps, ms", **row} for row in rows]


def layers_of(setting: Setting) -> Counter[Shape]:
    """Counts the inputs (N, C, H, W) of a network's batch normalizations by their shape."""
    network, found = network_of(setting, REFERENCE), Counter[Shape]()

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        found[inputs[0].shape[0], inputs[0].shape[1], inputs[0].shape[2], inputs[0].shape[3]] += 1

    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.zeros(setting.shape).contiguous(memory_format=LAYOUTS[setting.layout]))
    return found


def compare_memory(setting: Setting, norms: Sequence[str]) -> list[Measured]:
    """Measures a training step's peak memory, weights and images included."""
    peaks = {name: peak_memory(setting, name) for name in (REFERENCE, *norms)}
    rows = [
        {"normalizer": name, "peak MiB": peak / 2**20, "/ BN": peak / peaks[REFERENCE]} for name, peak in peaks.items()
    ]
    show(f"{setting.model}, peak memory of a training step, {setting.layout}", rows)
    return [{**asdict(setting), "measure": "peak memory", **row} for row in rows]
