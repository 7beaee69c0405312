"""Counts what a network predicts of training samples whose labels a sidecar gives, as they pass."""

import torch
from torch import Tensor

from en.data.labels import Relabelled
from en.runs.row import OUTCOMES


def outcomes(predicted: Tensor, labels: Relabelled, samples: Tensor) -> Tensor:
    """Counts samples by OUTCOMES, without synchronization: (5,) int64, on the predictions' device.

    Args:
        predicted: class numbers, (B,).
        labels: the training set.
        samples: indices in it, (B,), on the CPU.
    """
    clean, given = (each[samples].to(predicted.device, non_blocking=True) for each in (labels.clean, labels.given))
    right, memorized = predicted == clean, predicted == given
    of_wrong = torch.where(right, 0, torch.where(memorized, 1, 2))
    outcome = torch.where(clean != given, of_wrong, torch.where(right, 3, 4))
    numbers = torch.arange(len(OUTCOMES), device=predicted.device)
    return (outcome[:, None] == numbers).sum(0)
