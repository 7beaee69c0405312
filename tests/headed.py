"""A task whose network has two outputs in training and which ignores images of odd classes; run: train.py with it."""

import runpy
from typing import Any, Literal

import torch
from commands import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from en.models import build_model
from en.tasks import TASKS
from en.tasks.classification import Classification


class TwoHeads(nn.Module):
    """A dictionary in training, the first head alone in evaluation."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.second = body, nn.Linear(classes, classes)

    def forward(self, x: Tensor) -> Any:
        first = self.body(x)
        return {"first": first, "second": self.second(first)} if self.training else first


class Headed(Classification):
    """Classification by two heads; only images of even classes count."""

    name: Literal["headed"] = "headed"

    def network(self, classes: int, **model: Any) -> nn.Module:
        return TwoHeads(build_model(num_classes=classes, **model), classes)

    def check_output(self, output: object, classes: int) -> None:
        return

    def loss(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        counted = targets % 2 == 0
        losses = sum(F.cross_entropy(outputs[head].float(), targets, reduction="none") for head in ("first", "second"))
        return torch.where(counted, losses, 0.0).sum(), counted.sum()


if __name__ == "__main__":
    TASKS["headed"] = Headed
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
