"""The parts of scripts/gpu_check.py: what each measures, needs and may take."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

NETWORKS = ("torchvision",)
TRAINING = ("torchvision", "timm", "numpy", "PIL", "yaml", "pydantic", "torchmetrics", "tensorboard")
PICTURES = ("torchvision", "numpy", "PIL", "scipy")
LOADING = ("torchvision", "numpy", "PIL")


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: it measures, in words.
        test: file and name, as pytest names it.
        seconds: that it may take.
        needs: packages, by the names under which they are imported.
        timed: whether it measures time, and so needs the machine for itself.
    """

    what: str
    test: str
    seconds: float
    needs: tuple[str, ...] = ()
    timed: bool = True

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


# In order of value. What is not timed runs first and at the same time, so that it costs no more than its longest part.
TYPES = ("bfloat16", "float32", "float16", "float64")
TYPE, NETWORK = "test_correctness.py::test_type", "test_networks.py::test"
PARTS = {
    **{
        name: Part(f"every normalizer in {name} against float64", f"{TYPE}[{name}]", 100, timed=False) for name in TYPES
    },
    "special": Part(
        "CUDA graphs, huge tensors, torch.compile: the same", "test_correctness.py::test_special", 100, timed=False
    ),
    "exactness": Part(
        "the same bits twice, and after a kill", "test_exactness.py::test_exactness", 100, TRAINING, timed=False
    ),
    "options": Part("options of train.py", "test_options.py::test_options", 100, TRAINING, timed=False),
    "accuracy": Part("bn, sn and en on small images", "test_accuracy.py::test_accuracy", 100, PICTURES, timed=False),
    "caches": Part("nothing: fills torch.compile's caches", f"{NETWORK}_caches", 100, NETWORKS, timed=False),
    "kernels": Part(
        "nothing: compiles Triton's kernels for ResNet50, with all cores", "test_kernels.py::test_kernels", 60, NETWORKS
    ),
    "compiled": Part("training steps of ResNet50 under torch.compile", f"{NETWORK}_compiled", 130, NETWORKS),
    "steps": Part(
        "training steps of ResNet50, eager and as CUDA graphs; forms; memory", f"{NETWORK}_steps", 60, NETWORKS
    ),
    "inference": Part("ResNet50 in evaluation mode, eager and compiled", f"{NETWORK}_inference", 55, NETWORKS),
    "bandwidth": Part("each pass against a copy of the same bytes", "test_bandwidth.py::test_bandwidth", 30),
    "layer": Part("one layer, against torch's own", "test_layer.py::test_layer", 20),
    "shufflenet": Part("ShuffleNetV2 x1.0: eager, CUDA graphs, compiled", f"{NETWORK}_shufflenet", 50, NETWORKS),
    "trainer": Part("the trainer against its bare step", "test_trainer.py::test_trainer", 45, TRAINING),
    "loading": Part("JPEGs a second with all cores", "test_loading.py::test_loading", 40, LOADING),
}
MINUTES = 10
"""Seconds of all parts together: the longest of those that are not timed, and the timed ones one after another."""


def stages(names: list[str], parts: Mapping[str, Part] = PARTS) -> list[list[str]]:
    """The named parts in their order: first those that may run at the same time, then the others one by one."""
    together = [name for name in names if not parts[name].timed]
    alone = [[name] for name in names if parts[name].timed]
    return [together, *alone] if together else alone
