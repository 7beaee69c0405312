"""From a loader's uint8 images to the network's input, on the device."""

import torch
from torch import Tensor

from en.config.schema import Config


class InputStep:
    """Moves uint8 images to the device and normalizes them there: (pixel - mean) / std, float32.

    Args:
        config: for data.mean and data.std (0 to 255) and train.channels_last.
        device: where the network is.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self._mean = torch.tensor(config.data.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(config.data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, R, R) uint8 and (B,) int64 on the CPU -> (B, 3, R, R) float32 and (B,) int64 on the device."""
        moved = images.to(self.device, non_blocking=True)
        values = moved.to(torch.float32, memory_format=self.memory_format)
        return values.sub_(self._mean).div_(self._std), labels.to(self.device, non_blocking=True)
