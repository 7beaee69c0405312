"""A data set and a task in one file: the mask of a coloured disc; run as ranks: train.py or eval.py with both."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from commands import ROOT
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from en.data.crops import Crop, uniform
from en.data.sources import SPLITS, Sample, Source, registry
from en.data.targets import IGNORE, ClassMap
from en.data.views import View
from en.norm import replace_norm
from en.tasks import TASKS, Label, Task

NAMES, COLOURS = ["ground", "red", "blue", "green"], [(90, 90, 90), (230, 40, 40), (40, 40, 230), (40, 230, 40)]


def read_discs(root: Path) -> Source:
    """SPLIT/NAME.jpg with SPLIT/NAME.png, whose values are ten times the class numbers."""
    splits = {
        split: [Sample(path.name, path, path.with_suffix(".png")) for path in sorted((root / split).glob("*.jpg"))]
        for split in SPLITS
    }
    return Source("discs", NAMES, splits, ClassMap({10 * number: number for number in range(len(NAMES))}))


@dataclass(frozen=True)
class Around(Crop):
    """A box of the size's form around the image, up to `jitter` of it beyond each end, sometimes mirrored."""

    jitter: float

    def __call__(self, seed, epoch, samples, heights, widths, size):
        draws = uniform(seed, epoch, samples, 4)
        scale = np.maximum(heights / size[0], widths / size[1]) * (1 + self.jitter * (2 * draws[:, 0] - 1))
        h, w = (np.rint(scale * side).astype(np.int64).clip(1) for side in size)
        top, left = (heights - h) * draws[:, 1] // 1, (widths - w) * draws[:, 2] // 1
        boxes = np.stack([top, left, h, w], 1).astype(np.int64)
        return View(boxes, (draws[:, 3] < 0.5) & (self.jitter > 0), size)


class Discs(Task):
    """The class of each pixel, by cross-entropy."""

    score: ClassVar[str] = "miou"
    target: ClassVar[type[ClassMap]] = ClassMap
    labels: ClassVar[dict[str, Label]] = {"miou": Label("mIoU", "%")}

    name: Literal["discs"] = "discs"
    jitter: float = 0.5

    def network(self, classes: int, norm: str, norm_options: Any = None, **model: Any) -> nn.Module:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1)]
        return replace_norm(nn.Sequential(*layers, nn.Conv2d(16, classes, 1)), norm, **(norm_options or {}))

    def head(self, network: nn.Module) -> list[str]:
        return ["4"]

    def check_output(self, output: object, classes: int) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[:2] != (2, classes):
            raise ValueError(f"expected one tensor (2, {classes}, H, W) for 2 images")

    def crop(self, training: bool) -> Crop:
        return Around(self.jitter if training else 0.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(outputs.float(), targets, ignore_index=IGNORE, reduction="sum")
        return total, (targets != IGNORE).sum()

    def metrics(self, classes: int) -> MetricCollection:
        return MetricCollection({"iou": IoU(classes), "miou": MeanIoU(classes)}, compute_groups=False)


class IoU(Metric):
    """Intersection over union of each class, %, (classes,); not a number for a class that is nowhere."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, classes), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        counted, classes = targets != IGNORE, len(self.counts)
        pairs = targets[counted] * classes + outputs.argmax(1)[counted]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def compute(self) -> Tensor:
        both = self.counts.diag()
        return 100 * both / (self.counts.sum(0) + self.counts.sum(1) - both)


class MeanIoU(IoU):
    """The mean over the classes that are anywhere."""

    def compute(self) -> Tensor:
        return super().compute().nanmean()


def write_discs(root: Path, counts: dict[str, int]) -> Path:
    """Images of one disc each, of several sizes; no disc is green; the rim of a disc does not count."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        for number in range(count):
            height, width = random.integers(30, 60, 2)
            y, x = np.mgrid[:height, :width]
            distance = np.hypot(y - random.uniform(8, height - 8), x - random.uniform(8, width - 8))
            mask = np.where(distance < 12, 1 + number % 2, 0).astype(np.uint8)
            noise = random.normal(0, 20, (height, width, 3))
            image = np.clip(np.array(COLOURS)[mask] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / split / f"{number:03}.jpg", quality=95)
            values = np.where(np.abs(distance - 12) < 1, IGNORE, 10 * mask).astype(np.uint8)
            Image.fromarray(values).save(root / split / f"{number:03}.png")
    (root / "discs").write_text("")
    return root


def register() -> None:
    TASKS["discs"] = Discs
    registry.FORMS = ((lambda path: (path / "discs").is_file(), read_discs), *registry.FORMS)


if __name__ == "__main__":
    register()
    sys.argv.pop(0)
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
