"""Training and inference steps of networks: eager, as CUDA graphs, compiled; and their peak memory.

A training step is forward and backward, without the optimizer's, of a bfloat16 network, channels_last.
"""

import gc
import time
from collections.abc import Mapping

import torch

from en.benchmarks.forms import FORMS, step_in_form
from en.benchmarks.steps import REFERENCE, SMALL, Setting, Step, captured, peak_memory, step_of
from en.benchmarks.timing import Measured, interleaved, median
from gpu.machine import card
from gpu.results import Report, Setup, working

NAMES = (REFERENCE, "en", "sn", "gn", "bn")  # in order of value
BATCHES = {"resnet50": 256, "shufflenet_v2_x1_0": 512}
SIDE = 224
ROUNDS = 10


def test_steps(setup: Setup, report: Report) -> None:
    """Training steps of ResNet50, eager and as CUDA graphs, and their peak memory."""
    setting = setting_of(setup, "resnet50", "train")
    eager_and_graphs(setup, report, setting, "eager")
    with report.attempt("forms"):
        forms(setup, report, setting)
    peaks: dict[str, int] = {}
    for name in NAMES:
        with report.attempt(f"memory, {name}"):
            peaks[name] = peak_memory(setting, name)
            ratio = peaks[name] / peaks[REFERENCE]
            report.row(
                f"peak memory, {title_of(setting, 'eager')}",
                normalizer=name,
                MiB=peaks[name] / 2**20,
                **{"/ BN": ratio},
            )
            report.figure(f"memory {name}", ratio)


def test_shufflenet(setup: Setup, report: Report) -> None:
    """Training steps of ShuffleNetV2 x1.0."""
    eager_and_graphs(setup, report, setting_of(setup, "shufflenet_v2_x1_0", "train"), "shufflenet eager")
    one_by_one(setup, report, setting_of(setup, "shufflenet_v2_x1_0", "train", compiled=True), "shufflenet compiled")


def test_compiled(setup: Setup, report: Report) -> None:
    """Training steps of ResNet50 under torch.compile."""
    one_by_one(setup, report, setting_of(setup, "resnet50", "train", compiled=True), "compiled")


def test_inference(setup: Setup, report: Report) -> None:
    """ResNet50 in evaluation mode."""
    setting = setting_of(setup, "resnet50", "infer")
    cases = working(report, "eager", NAMES, lambda name: step_of(setting, name)[0])
    compare(setup, report, setting, "eager", "inference eager", cases)
    release(setup)
    one_by_one(setup, report, setting_of(setup, "resnet50", "infer", compiled=True), "inference")


def test_caches(setup: Setup, report: Report) -> None:
    """Compiles what later parts measure, so that they find it in torch's caches; a cut costs nothing."""
    for mode in ("train", "infer"):
        for name in NAMES[:1] if setup.tiny else NAMES:
            with report.attempt(f"{mode} {name}"):
                step_of(setting_of(setup, "resnet50", mode, compiled=True), name)[0]()
            torch.compiler.reset()
            release(setup)


def setting_of(setup: Setup, model: str, mode: str, compiled: bool = False) -> Setting:
    shape = (2, 3, 16, 16) if setup.tiny else (BATCHES[model], 3, SIDE, SIDE)
    backend = "eager" if setup.tiny else "inductor"
    model = SMALL if setup.tiny else model
    return Setting(model, shape, "channels_last", "bfloat16", setup.device, compiled, mode, backend)


def title_of(setting: Setting, form: str) -> str:
    what = "training step" if setting.mode == "train" else "inference"
    return f"{what} of {setting.model}, {setting.shape[0]} images of {setting.shape[3]} pixels, bfloat16, {form}"


def eager_and_graphs(setup: Setup, report: Report, setting: Setting, figure: str) -> None:
    """The same steps called from Python, then replayed as CUDA graphs."""
    cases = working(report, "eager", NAMES, lambda name: step_of(setting, name)[0])
    compare(setup, report, setting, "eager", figure, cases)
    report.note(f"after these steps: {card() or 'no nvidia-smi'}")
    if setup.device != "cuda":
        report.note("CUDA graphs: skipped: expected a GPU")
        return
    release(setup)
    pool = torch.cuda.graph_pool_handle()
    graphs = working(report, "CUDA graph", tuple(cases), lambda name: captured(cases[name], pool))
    compare(setup, report, setting, "as CUDA graphs", f"{figure} graphs", graphs)


def forms(setup: Setup, report: Report, setting: Setting) -> None:
    """The forms among which en.norm chooses, eager."""
    steps = working(report, "forms", (REFERENCE, "en", "sn", "gn"), lambda name: step_of(setting, name)[0])
    cases = {
        f"{name}, {form}": step_in_form(step, form)
        for name, step in steps.items()
        for form in FORMS
        if name != REFERENCE
    }
    cases = working(report, "forms", tuple(cases), cases.__getitem__)
    compare(setup, report, setting, "eager, by form", "form", {REFERENCE: steps[REFERENCE], **cases})


def compare(setup: Setup, report: Report, setting: Setting, form: str, figure: str, cases: Mapping[str, Step]) -> None:
    """Measures all cases in turns, the reference among them."""
    if REFERENCE not in cases:
        return
    title = title_of(setting, form)
    rounds = 2 if setup.tiny else ROUNDS
    seconds = interleaved(cases, rounds, title, warmups=1 if setup.tiny else 3, repeat=1, device=setup.device)
    base = median(seconds[REFERENCE])
    for name, values in seconds.items():
        report.row(title, **row_of(name, values, base))
        report.figure(f"{figure} {name}", median(values) / base)
        report.figure(f"images/s {figure} {name}", setting.shape[0] / median(values))


def row_of(name: str, seconds: list[float], base: float) -> Measured:
    middle = median(seconds)
    fastest, slowest = (1000 * bound(seconds) for bound in (min, max))
    ms: Measured = {"normalizer": name, "ms": 1000 * middle, "least": fastest, "most": slowest}
    return {**ms, "/ BN": middle / base, "n": len(seconds)}


def one_by_one(setup: Setup, report: Report, setting: Setting, figure: str) -> None:
    """Compiles one network after another, as time allows, and measures each in turns with the reference."""
    title, needed = title_of(setting, "compiled"), 0.0
    reference = None
    for name in NAMES[:2] if setup.tiny else NAMES:
        if needed > setup.left():
            report.note(f"compiled, {name}: skipped: {setup.left():.0f} s left, the one before took {needed:.0f} s")
            continue
        with report.attempt(f"compiled, {name}"):
            began = time.monotonic()
            step = step_of(setting, name)[0]
            step()
            needed = time.monotonic() - began
            reference = step if name == REFERENCE else reference
            if reference is None:
                continue
            pair = {REFERENCE: reference, name: step}
            rounds = 2 if setup.tiny else ROUNDS
            seconds = interleaved(pair, rounds, f"{title}, {name}", device=setup.device)
            base = median(seconds[REFERENCE])
            row = row_of(name, seconds[name], base)
            report.row(title, **row, **{"BN then, ms": 1000 * base, "first step, s": needed})
            report.figure(f"{figure} {name}", row["/ BN"])
            report.figure(f"images/s {figure} {name}", setting.shape[0] / median(seconds[name]))


def release(setup: Setup) -> None:
    """Gives memory that nothing uses back to the card."""
    gc.collect()
    if setup.device == "cuda":
        torch.cuda.empty_cache()
