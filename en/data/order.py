"""Which samples a step sees, on which rank: pure functions of (seed, epoch)."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def epoch_order(samples: int, seed: int, epoch: int) -> Ints:
    """The order in which an epoch visits the samples: a permutation of range(samples)."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def rank_batches(order: Ints, batch_size: int, accumulation: int, rank: int, world_size: int) -> list[Ints]:
    """One rank's part of an epoch, `accumulation` batches for each step.

    A step takes the next `batch_size` samples of the order; within it, micro-batch a of rank r is a contiguous slice.
    What is left over at the end of the order is dropped.
    """
    size = batch_size // (accumulation * world_size)
    steps = len(order) // batch_size
    parts = order[: steps * batch_size].reshape(steps * accumulation, world_size, size)
    return list(parts[:, rank])
