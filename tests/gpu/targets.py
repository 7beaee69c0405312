"""What the figures are to reach on an H200 or alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu.parts import PARTS, TYPES

Figures = Mapping[str, float | bool]
CORRECT = (*TYPES, "special")
OF_RESULTS = (*CORRECT, "exactness", "options")
SHARES = ("moments", "affine", "gradient_sums", "input_gradient")


@dataclass(frozen=True)
class Target:
    """A figure of a part and its bound."""

    text: str
    part: str
    figure: str
    bound: float
    at_least: bool = False

    def row(self, figures: Figures, tiny: bool) -> dict[str, object]:
        """The row of the table at the end. Small sizes judge what is right, not what is fast."""
        value = figures.get(self.figure)
        verdict = "not measured" if value is None else "not judged"
        if value is not None and not (tiny and self.part not in OF_RESULTS):
            verdict = "met" if (value >= self.bound if self.at_least else value <= self.bound) else "missed"
        words = f"at {'least' if self.at_least else 'most'} {self.bound:g}"
        return {"figure": self.text, "part": self.part, "target": words, "measured": value, "verdict": verdict}


TARGETS = (
    *(Target(f"{name}: cases with an error beyond the type's", name, f"beyond {name}", 0) for name in CORRECT),
    Target("ResNet50 training, compiled both: EN / BN", "compiled", "compiled en", 1.05),
    Target("ResNet50 training, compiled both: SN / BN", "compiled", "compiled sn", 1.05),
    Target("ResNet50 training, eager both: EN / BN", "steps", "eager en", 1.10),
    Target("ResNet50 training, eager both: SN / BN", "steps", "eager sn", 1.10),
    Target("GN / nn.BatchNorm2d, channels_last, eager", "layer", "gn / nn.BatchNorm2d", 1.05),
    Target("GN / nn.GroupNorm under autocast, same", "layer", "gn / nn.GroupNorm", 0.6),
    Target("ResNet50 inference, compiled: EN / BN", "inference", "inference en", 1.15),
    *(Target(f"{name}, share of the copy bandwidth", "bandwidth", f"share {name}", 0.8, True) for name in SHARES),
    Target("trainer / bare step", "trainer", "trainer / bare step", 0.95, True),
    Target("two deterministic runs: the same bits", "exactness", "two runs", 1, True),
    Target("a killed run, resumed: the same bits", "exactness", "killed", 1, True),
    Target("options of train.py that fail", "options", "failures", 0),
)


EATERS = {"eager": "images/s eager en", "compiled": "images/s compiled en"}


def loading_rows(figures: Figures) -> list[dict[str, object]]:
    """Each loader's images/s, and its share of what training ResNet50 with EN takes in, as far as that was measured."""
    loaders = {name: value for name, value in figures.items() if name.startswith("images/s of ")}
    eaten = {form: figures[name] for form, name in EATERS.items() if name in figures}
    return [
        {
            "loader": name.removeprefix("images/s of "),
            "images/s": value,
            **{f"/ training, {form}": value / most for form, most in eaten.items()},
        }
        for name, value in loaders.items()
        if eaten
    ]


def target_rows(figures: Figures, tiny: bool) -> list[dict[str, object]]:
    """Every target with what was measured."""
    assert all(target.part in PARTS for target in TARGETS)
    return [target.row(figures, tiny) for target in TARGETS]


def summary(report: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """Returns where the chosen parts ran, how each ended, what was measured of the targets, and what failed."""
    parts: Mapping[str, Any] = report["parts"]
    measured = [row for row in report["targets"] if row["measured"] is not None]
    return {
        **{key: report[key] for key in ("command", "git_commit", "git_dirty", "hardware", "card", "tiny")},
        "parts": {name: ended(parts.get(name)) for name in chosen},
        "targets": {row["figure"]: [row["measured"], row["verdict"]] for row in measured},
        "failures": [f"{name}: {text}" for name, part in parts.items() for text in part["failures"]],
    }


def ended(part: Mapping[str, Any] | None) -> str:
    """Returns how a part ended, in a word or two."""
    if part is None:
        return "not run"
    return "cut off" if part["cut off"] else "failed" if part["failures"] else "done"
