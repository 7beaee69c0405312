"""Mixup and cutmix."""

import torch
from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """Mixup and cutmix by torchvision, drawn from torch's global generator; labels become (B, classes).

    Args:
        mixup, cutmix: alpha of their Beta distributions, 0 for none; with both on, each batch takes one of the two.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self._choices = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self._choices:
            return images, labels
        choice = self._choices[int(torch.randint(len(self._choices), ()))]
        images, labels = choice(images, labels)
        return images, labels
