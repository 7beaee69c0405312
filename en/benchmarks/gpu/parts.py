"""The parts of scripts/gpu_check.py: what each measures, needs and may take."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from en.benchmarks.gpu.report import Report, Setup

NETWORKS = ("torchvision",)
TRAINING = ("torchvision", "timm", "numpy", "PIL", "yaml", "pydantic", "torchmetrics", "tensorboard")
PICTURES = ("torchvision", "numpy", "PIL", "scipy")
LOADING = ("torchvision", "numpy", "PIL")


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: it measures, in words.
        function: module below en.benchmarks.gpu, and the function in it.
        seconds: that it may take.
        needs: packages, by the names under which they are imported.
        timed: whether it measures time, and so needs the machine for itself.
    """

    what: str
    function: str
    seconds: float
    needs: tuple[str, ...] = ()
    timed: bool = True

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    def load(self) -> Callable[[Setup, Report], None]:
        """Imports what it needs. Returns: what runs it."""
        module, name = self.function.split(".")
        function: Callable[[Setup, Report], None] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return function


# In order of value. What is not timed runs first and at the same time, so that it costs no more than its longest part.
PARTS = {
    **{
        dtype: Part(f"every normalizer in {dtype} against float64", f"correctness.{dtype}", 100, timed=False)
        for dtype in ("bfloat16", "float32", "float16", "float64")
    },
    "special": Part("CUDA graphs, huge tensors, torch.compile: the same", "correctness.special", 100, timed=False),
    "exactness": Part("the same bits twice, and after a kill", "exactness.exactness", 100, TRAINING, timed=False),
    "options": Part("options of train.py", "options.options", 100, TRAINING, timed=False),
    "accuracy": Part("bn, sn and en on small images", "accuracy.accuracy", 100, PICTURES, timed=False),
    "caches": Part("nothing: fills torch.compile's caches", "networks.caches", 100, NETWORKS, timed=False),
    "kernels": Part("nothing: compiles Triton's kernels for ResNet50, with all cores", "kernels.kernels", 60, NETWORKS),
    "compiled": Part("training steps of ResNet50 under torch.compile", "networks.compiled", 130, NETWORKS),
    "steps": Part(
        "training steps of ResNet50, eager and as CUDA graphs; forms; memory", "networks.steps", 60, NETWORKS
    ),
    "inference": Part("ResNet50 in evaluation mode, eager and compiled", "networks.inference", 55, NETWORKS),
    "bandwidth": Part("each pass against a copy of the same bytes", "bandwidth.bandwidth", 30),
    "layer": Part("one layer, against torch's own", "layer.layer", 20),
    "shufflenet": Part("ShuffleNetV2 x1.0: eager, CUDA graphs, compiled", "networks.shufflenet", 50, NETWORKS),
    "trainer": Part("the trainer against its bare step", "trainer.trainer", 45, TRAINING),
    "loading": Part("JPEGs a second with all cores", "loading.loading", 40, LOADING),
}
MINUTES = 10
"""What all parts may take together: the longest of those that are not timed, and the timed ones one after another."""


def stages(names: list[str]) -> list[list[str]]:
    """The named parts in their order: first those that may run at the same time, then the others one by one."""
    together = [name for name in names if not PARTS[name].timed]
    alone = [[name] for name in names if PARTS[name].timed]
    return [together, *alone] if together else alone
