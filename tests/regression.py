"""A task in one file: two numbers for each image, here where its class lies on a grid of two columns."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from en.data.crops import CentreCrop, Crop
from en.models import build_model
from en.tasks.base import Label, Task


def places(targets: Tensor) -> Tensor:
    """(B,) class numbers -> (B, 2): row and column."""
    return torch.stack([targets // 2, targets % 2], 1).float()


class Regression(Task):
    """Two numbers by mean squared error; error is the mean distance, closeness its negative."""

    score: ClassVar[str] = "closeness"
    labels: ClassVar[dict[str, Label]] = {"error": Label("error", "px")}

    name: Literal["regression"] = "regression"
    weight: float = 1.0  # of the loss

    def network(self, classes: int, **model: Any) -> nn.Module:
        return build_model(num_classes=2, **model)

    def check_output(self, output: object, classes: int) -> None:
        if not isinstance(output, Tensor) or output.shape != (2, 2):
            raise ValueError("expected one tensor (2, 2) for 2 images")

    def crop(self, training: bool) -> Crop:
        return CentreCrop(1.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return self.weight * F.mse_loss(outputs.float(), places(targets), reduction="sum") / 2, len(targets)

    def metrics(self, classes: int) -> MetricCollection:
        return MetricCollection({"error": Distance(1.0), "closeness": Distance(-1.0)}, compute_groups=False)


class Distance(MeanMetric):
    """The mean distance times a sign."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(self.sign * (outputs - places(targets)).norm(dim=1))
