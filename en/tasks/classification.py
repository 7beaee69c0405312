"""Naming images: one class for each."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchvision.transforms import v2

from en.data.augmentation import MOST, Drawn, RandAugment, RandomErasing
from en.data.crops import CentreCrop, Crop, RandomResizedCrop, ResizeCrop
from en.data.palette import Colour
from en.machine import package_version
from en.means import Pixels, Recipe
from en.models import build_model
from en.norm import Normalizer
from en.tasks.base import Label, Task
from en.tasks.by_class import class_metrics

Probability = Annotated[float, Field(ge=0, le=1)]
Magnitude = Annotated[float, Field(ge=0, le=MOST)]
Alpha = Annotated[float, Field(ge=0, le=1000)]
AreaRange = Annotated[list[Annotated[float, Field(ge=1e-6, le=1)]], Field(min_length=2, max_length=2)]
EVALUATION: dict[str, Callable[[float], Crop]] = {"centre": CentreCrop, "resize_crop": ResizeCrop}
AspectRange = Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], Field(min_length=2, max_length=2)]


class Classification(Task):
    """The class of each image, learned by cross-entropy; targets are class numbers, (B,) int64.

    top1 and top5 are the % of images whose class has the highest output, or one of the five highest (top5 for more than
    five classes only); of equal outputs that of the lower class number counts as the higher one, as for argmax. loss is
    the mean cross-entropy without label smoothing. ece and, where classes have unequal numbers of images, macro_top1
    are those of en/tasks/by_class.py, %, which also says what is counted class by class.
    """

    score: ClassVar[str] = "top1"
    labels: ClassVar[dict[str, Label]] = {
        "top1": Label("top-1", "%"),
        "macro_top1": Label("macro top-1", "%"),
        "top5": Label("top-5", "%"),
    }

    name: Literal["classification"] = "classification"
    crop_scale: Recipe[AreaRange] = Field(default=[0.08, 1.0])  # training crop's area / image's
    crop_ratio: Recipe[AspectRange] = Field(default=[3 / 4, 4 / 3])  # its width / height, over that of data.resolution
    flip: Recipe[Probability] = 0.5  # of a horizontal flip in training
    evaluation: Pixels[Literal["centre", "resize_crop"]] = (
        "centre"  # cut the box, then resize; or torchvision's resize, then cut
    )
    centre_share: Pixels[Annotated[float, Field(gt=0, le=1)]] = 0.875  # evaluation crop's sides / the largest crop's
    label_smoothing: Recipe[Annotated[float, Field(ge=0, lt=1)]] = 0.0  # share of the target given to all classes
    mixup: Recipe[Alpha] = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: Recipe[Alpha] = 0.0  # the same; with both on, each batch takes one of the two
    rand_augment: Recipe[Annotated[int, Field(ge=0, le=10)]] = 0  # operations of RandAugment on an image; 0: off
    rand_magnitude: Recipe[Magnitude] = 3.0  # of these, 0 to 10; 3 is torchvision's default, its 9 of 30
    rand_deviation: Recipe[Magnitude] = 0.0  # standard deviation of a single one's magnitude; timm's mstd
    rand_probability: Recipe[Probability] = 1.0  # that one of them is applied; timm's 0.5
    erasing: Recipe[Probability] = 0.0  # of random erasing: a box of 2 to 33 % of an image becomes the mean colour

    @model_validator(mode="after")
    def _ranges(self) -> "Classification":
        for name, (low, high) in {"crop_scale": self.crop_scale, "crop_ratio": self.crop_ratio}.items():
            if low > high:
                raise ValueError(f"{name}={[low, high]}: expected the smaller number first")
        return self

    def network(self, classes: int, **model: Any) -> nn.Module:
        return build_model(num_classes=classes, **model)

    def head(self, network: nn.Module) -> list[str]:
        """The classifier: the last linear or convolutional layer outside the normalizers."""
        inside = tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, Normalizer))
        layers = [name for name, part in network.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
        return [name for name in layers if not name.startswith(inside)][-1:]

    def check_output(self, output: object, classes: int) -> None:
        if not isinstance(output, Tensor) or output.shape != (2, classes):
            found = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"expected a classifier, one tensor (2, {classes}) for 2 images; found {found}")

    def crop(self, training: bool) -> Crop:
        if not training:
            return EVALUATION[self.evaluation](self.centre_share)
        return RandomResizedCrop(
            (self.crop_scale[0], self.crop_scale[1]), (self.crop_ratio[0], self.crop_ratio[1]), self.flip
        )

    def distort(self, images: Tensor, drawn: Drawn, padding: Colour) -> Tensor:
        """RandAugment and then random erasing, where they are on."""
        rand = RandAugment(self.rand_augment, self.rand_magnitude, self.rand_deviation, self.rand_probability)
        return RandomErasing(self.erasing)(rand(images, drawn, padding), drawn, padding)

    def augment(self, images: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, where they are on: targets become (B, classes) float32."""
        choices = mixers(self.mixup, self.cutmix, classes)
        if not choices:
            return images, targets
        images, targets = choices[int(torch.randint(len(choices), ()))](images, targets)
        return images, targets

    @property
    def augmented_by(self) -> dict[str, str | None]:
        by_torchvision = (self.mixup, self.cutmix, self.rand_augment)
        return {"torchvision": package_version("torchvision")} if any(by_torchvision) else {}

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        total = F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing, reduction="sum")
        return total, len(targets)

    def predicted_classes(self, outputs: Tensor) -> Tensor | None:
        return None if self.mixup or self.cutmix else outputs.detach().argmax(1)

    def metrics(self, classes: int) -> MetricCollection:
        if classes < 2:
            raise ValueError(f"expected images of at least 2 classes, found {classes}")
        metrics: dict[str, Metric] = {"top1": Accuracy(top=1), "loss": CrossEntropy(nan_strategy="disable")}
        if classes > 5:
            metrics["top5"] = Accuracy(top=5)
        return MetricCollection(metrics | class_metrics(classes), compute_groups=False)


@cache
def mixers(mixup: float, cutmix: float, classes: int) -> list[nn.Module]:
    """torchvision's mixup and cutmix, those whose alpha is not 0."""
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    return [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]


class Accuracy(MeanMetric):  # type: ignore[misc]
    """The % of images whose class is among the `top` highest outputs, by `ranks`."""

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(100 * (ranks(outputs, targets) < self.top).to(torch.float64))


def ranks(outputs: Tensor, targets: Tensor) -> Tensor:
    """Counts the classes that come before the target's: those of higher output and, of equal ones, of lower number.

    argmax says the same of the first place; torch.topk chooses freely among equal outputs, so that an image may count
    for top-1 and not for top-5. An output that is not a number comes before all others, and the target's after them.

    Args:
        outputs, targets: (B, classes) and (B,).
    Returns: (B,), from 0.
    """
    own = outputs.gather(1, targets[:, None])
    tied = (outputs == own) & (torch.arange(outputs.shape[1], device=outputs.device) < targets[:, None])
    return (~(outputs <= own) | tied).sum(1)


class CrossEntropy(MeanMetric):  # type: ignore[misc]
    """The mean over images, without label smoothing."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(F.cross_entropy(outputs, targets, reduction="none"))
