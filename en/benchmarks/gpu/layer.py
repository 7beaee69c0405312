"""Forward and backward of one layer, against torch's own layers: eager, bfloat16."""

from en.benchmarks.forms import step_in_form
from en.benchmarks.gpu.report import Report, Setup
from en.benchmarks.steps import LAYOUTS, REFERENCE, TORCH_GROUP_NORM, Setting, step_of
from en.benchmarks.timing import interleaved, median
from en.norm import NORMALIZERS

SHAPE, SMALL_SHAPE = (256, 256, 56, 56), (2, 32, 4, 4)
NAMES = (REFERENCE, TORCH_GROUP_NORM, *NORMALIZERS)


def layer(setup: Setup, report: Report) -> None:
    """channels_last first; the figures with targets are its."""
    shape = SMALL_SHAPE if setup.tiny else SHAPE
    for layout in reversed(LAYOUTS):
        title = f"one layer, {' x '.join(map(str, shape))}, bfloat16, {layout}, eager"
        setting = Setting("layer", shape, layout, "bfloat16", setup.device, False, "train")
        with report.attempt(title):
            cases = {name: step_of(setting, name)[0] for name in NAMES}
            for name in ("gn", "sn", "en"):
                cases |= {f"{name}, {form}": step_in_form(cases[name], form) for form in ("passes", "torch")}
            times = interleaved(
                cases, 2 if setup.tiny else 7, title, repeat=1 if setup.tiny else 5, device=setup.device
            )
            middle = {name: median(values) for name, values in times.items()}
            for name, seconds in middle.items():
                ratios = {f"/ {other}": seconds / middle[other] for other in (REFERENCE, TORCH_GROUP_NORM)}
                report.row(title, layer=name, ms=1000 * seconds, **ratios, n=len(times[name]))
                for ratio, value in ratios.items() if layout == "channels_last" else ():
                    report.figure(f"{name} {ratio}", value)
