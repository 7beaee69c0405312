"""From a loader's uint8 images to the network's input, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from en.data.palette import Colour


def padding_of(mean: Sequence[float]) -> Colour:
    """The colour beyond an image: the mean one, about 0 for the network."""
    red, green, blue = map(round, mean)
    return red, green, blue


class ToDevice:
    """Moves uint8 images to the device and normalizes them there: (pixel - mean) / std, float32.

    Attributes:
        padding: the colour of what lies beyond an image.

    Args:
        mean, std: of the three channels, 0 to 255.
        channels_last: the memory format of the network and its input.
        device: where the network is.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool, device: torch.device) -> None:
        self.device = device
        self.padding = padding_of(mean)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) and their targets on the CPU -> float32 images and the targets on the device."""
        images, targets = self.move(images, targets)
        return self.normalize(images), targets

    def move(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same images and targets on the device, not yet normalized."""
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        # Maps travel in bytes, and losses take int64.
        return images, targets.long() if targets.dtype == torch.uint8 else targets

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images on the device -> float32."""
        return images.to(torch.float32, memory_format=self.memory_format).sub_(self._mean).div_(self._std)

    def pixels(self, images: Tensor) -> Tensor:
        """float32 images as `normalize` gives them -> uint8, rounded to the nearest."""
        return images.mul(self._std).add_(self._mean).round_().clamp_(0, 255).byte().contiguous()
