"""Forward and backward of one layer, against torch's own layers: eager, bfloat16."""

from dataclasses import replace
from itertools import product

from en.benchmarks.forms import step_in_form
from en.benchmarks.steps import LAYOUTS, REFERENCE, TORCH_GROUP_NORM, Setting, Step, step_of
from en.benchmarks.timing import interleaved, median
from en.norm import NORMALIZERS
from gpu.results import Report, Setup, working

SHAPE, SMALL_SHAPE = (256, 256, 56, 56), (2, 32, 4, 4)
NAMES = (REFERENCE, TORCH_GROUP_NORM, *NORMALIZERS)
OWN_TYPE = "nn.GroupNorm in bfloat16"  # with weights of that type; autocast computes nn.GroupNorm in float32


def test_layer(setup: Setup, report: Report) -> None:
    """channels_last first; the figures with targets are its."""
    shape = SMALL_SHAPE if setup.tiny else SHAPE
    for layout in reversed(LAYOUTS):
        setting = Setting("layer", shape, layout, "bfloat16", setup.device, False, "train")
        with report.attempt(layout):
            measure(setup, report, setting, steps_of(report, setting))


def steps_of(report: Report, setting: Setting) -> dict[str, Step]:
    """The layers, and ours in each form."""
    layout, own_type = setting.layout, replace(setting, weights="bfloat16")
    steps = working(report, layout, NAMES, lambda name: step_of(setting, name)[0])
    steps |= working(report, layout, (OWN_TYPE,), lambda _: step_of(own_type, TORCH_GROUP_NORM)[0])
    forms = {
        f"{name}, {form}": step_in_form(steps[name], form)
        for name, form in product(("gn", "sn", "en"), ("passes", "torch"))
        if name in steps
    }
    return steps | working(report, layout, tuple(forms), forms.__getitem__)


def measure(setup: Setup, report: Report, setting: Setting, steps: dict[str, Step]) -> None:
    """All layers in turns, and their ratios to torch's own."""
    title = f"one layer, {' x '.join(map(str, setting.shape))}, bfloat16, {setting.layout}, eager"
    rounds, repeat = (2, 1) if setup.tiny else (7, 5)
    times = interleaved(steps, rounds, title, repeat=repeat, device=setup.device)
    middle = {name: median(values) for name, values in times.items()}
    others = [name for name in (REFERENCE, TORCH_GROUP_NORM, OWN_TYPE) if name in middle]
    for name, seconds in middle.items():
        ratios = {f"/ {other}": seconds / middle[other] for other in others}
        report.row(title, layer=name, ms=1000 * seconds, **ratios, n=len(times[name]))
        for ratio, value in ratios.items() if setting.layout == "channels_last" else ():
            report.figure(f"{name} {ratio}", value)
