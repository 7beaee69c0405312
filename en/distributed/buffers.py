"""A network's buffers, of which each rank has its own in training."""

import torch
import torch.distributed as dist
from torch import nn

from en.distributed.collectives import mean_over_ranks


def average_buffers(model: nn.Module) -> None:
    """Averages each floating-point buffer over the ranks, so that all evaluate the same network."""
    if not dist.is_initialized():
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = mean_over_ranks(torch.cat([buffer.flatten().float() for buffer in buffers]))
        for buffer, mean in zip(buffers, torch.split(flat, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
