"""Labelling pixels: one class for each."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from en.data.crops import Crop, ScaledCrop, WholeImage
from en.data.palette import Colour
from en.data.targets import IGNORE, ClassMap
from en.means import Pixels, Recipe
from en.models.segmenters import BACKBONE, backbone_of, build_segmenter
from en.size import size_of
from en.tasks.base import Body, Label, Task
from en.tasks.classification import Probability
from en.tasks.confusion import confusion_scores
from en.tasks.dense import predict_classes
from en.tasks.drawing import draw_maps
from en.tasks.protocols import Protocol, protocol

Factor = Annotated[float, Field(ge=0.01, le=100)]
FactorRange = Annotated[list[Factor], Field(min_length=2, max_length=2)]
Side = Annotated[int, Field(ge=1, le=8192)]


class Segmentation(Task):
    """The class of each pixel, learned by cross-entropy; targets are maps of class numbers, (B, H, W) int64.

    The loss is the mean over all pixels of a step that count, on whichever rank and in whichever micro-batch; logits
    are enlarged to the size of the targets for it. miou, macc and aacc are mean intersection over union, mean accuracy
    of the classes and accuracy of all pixels, %, and iou that of each class, of one matrix of all pixels of the set.
    """

    score: ClassVar[str] = "miou"
    target: ClassVar[type[ClassMap]] = ClassMap
    own_sizes: ClassVar[bool] = True
    labels: ClassVar[dict[str, Label]] = {
        "miou": Label("mIoU", "%"),
        "macc": Label("mAcc", "%"),
        "aacc": Label("pixel accuracy", "%"),
    }
    counted: ClassVar[str] = "pixels"

    name: Literal["segmentation"] = "segmentation"
    scale: Recipe[FactorRange] = Field(default=[0.5, 2.0])  # of training images, any between
    base_size: Recipe[Annotated[list[Side], Field(min_length=2, max_length=2)] | None] = (
        None  # scale is of the size that fits into this, lying or upright, such as [512, 2048]; null: of the image's
    )
    most_of_class: Recipe[Annotated[float, Field(gt=0, le=1)]] = (
        0.75  # a crop with a class on more of its pixels is drawn again, up to 10 times; 1: none
    )
    flip: Recipe[Probability] = 0.5  # of a horizontal flip in training
    aux_weight: Recipe[Annotated[float, Field(ge=0, le=10)]] = 0.4  # of the auxiliary head's loss; 0: no such head
    protocol: Pixels[Literal["ours", "ours_ms", "snseg", "snseg_ms", "mmseg", "mmseg_ms", "semseg", "semseg_ms"]] = (
        "ours"  # of scoring: see docs/segmentation.md
    )
    data_set: Pixels[Literal["ade20k", "cityscapes"] | None] = (
        None  # whose sizes the protocol has; null: for ours alone
    )

    @model_validator(mode="after")
    def _fits(self) -> "Segmentation":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale={self.scale}: expected the smaller number first")
        protocol(self.protocol, self.data_set)
        return self

    @property
    def scored_by(self) -> Protocol:
        """The protocol of its scores."""
        return protocol(self.protocol, self.data_set)

    def network(self, classes: int, **model: Any) -> nn.Module:
        return build_segmenter(num_classes=classes, auxiliary=self.aux_weight > 0, **model)

    def head(self, network: nn.Module) -> list[str]:
        """Everything but the backbone."""
        return [name for name, _ in network.named_children() if name != BACKBONE]

    def body(self, name: str) -> Body | None:
        """The backbone, of a network that classifies images."""
        classifier = backbone_of(name)
        return None if classifier is None else Body(BACKBONE, classifier)

    def check_output(self, output: object, classes: int) -> None:
        parts = list(output.values()) if isinstance(output, dict) else [output]
        shapes = [(*part.shape[:2], part.ndim) if isinstance(part, Tensor) else None for part in parts]
        if not shapes or any(shape != (2, classes, 4) for shape in shapes):
            raise ValueError(f"expected maps of logits, (2, {classes}, h, w) for 2 images")

    def crop(self, training: bool) -> Crop:
        if not training:
            return WholeImage()
        base = None if self.base_size is None else size_of(self.base_size)
        return ScaledCrop((self.scale[0], self.scale[1]), self.flip, base, self.most_of_class)

    def loss(self, outputs: dict[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count in whole maps, so that neither outgrows float16's range of gradients."""
        pixels = targets[0].numel()
        total = pixel_losses(outputs["out"], targets)
        if "aux" in outputs:
            total = total + self.aux_weight * pixel_losses(outputs["aux"], targets)
        return total / pixels, (targets != IGNORE).sum() / pixels

    def predict(self, network: nn.Module, images: Tensor) -> Tensor:
        """The class of each pixel by the protocol, (B, H, W) uint8."""
        return predict_classes(network, images, self.scored_by)

    def metrics(self, classes: int) -> MetricCollection:
        if not 2 <= classes <= IGNORE:
            raise ValueError(f"expected 2 to {IGNORE} classes, found {classes}")
        return confusion_scores(classes, self.scored_by.absent)

    def picture(
        self, image: Tensor, target: Tensor, predicted: Tensor, names: list[str], palette: list[Colour]
    ) -> NDArray[np.uint8]:
        """The image beside the truth, the prediction and the pixels at which the two differ: see `draw_maps`."""
        pixels, truth, guess = (part.cpu().numpy() for part in (image, target, predicted))
        return draw_maps(pixels, truth, guess, names, palette)

    @property
    def manner(self) -> dict[str, Any]:
        return {"protocol": {"name": self.protocol, "data_set": self.data_set, **self.scored_by.rows()}}

    def remark(self, scores: Mapping[str, float], classes: int) -> str:
        found = f"{scores['classes_found']:.0f} of {classes}"
        mean = f"mean of {found} classes" if self.scored_by.absent == "left_out" else f"{found} classes found, rest 0"
        return f"protocol {self.protocol}, {mean}"


def pixel_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropy of all pixels that count; 0, with a gradient of 0, where none does.

    As rows of one pixel each: cross-entropy of maps has no deterministic form on a GPU.

    Args:
        logits: (B, C, h, w), which are enlarged bilinearly.
        targets: (B, H, W).
    """
    enlarged = F.interpolate(logits.float(), targets.shape[1:], mode="bilinear")
    rows = enlarged.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return F.cross_entropy(rows, targets.reshape(-1).long(), ignore_index=IGNORE, reduction="sum")
