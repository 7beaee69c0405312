"""Batch statistics over several ranks."""

import torch.distributed as dist
from torch import nn

from en.norm.base import Normalizer, RunningNormalizer
from en.norm.freezing import freeze_alike
from en.norm.replace import is_batch_norm, put

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def convert_sync(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Has every batch statistic of `model` taken over all ranks, in place, and returns the model.

    The normalizers here switch `sync` on, on any backend; torch's own batch normalization becomes nn.SyncBatchNorm,
    which torch computes on GPUs alone.

    Args:
        process_group: the ranks that share their statistics; None for all. Neither a copy nor a file of the model can
            hold one.
    Raises: ValueError, with the model untouched, for batch normalization of another kind, named by its place, and for
        a model without batch statistics.
    """
    layers = {place: layer for place, layer in model.named_modules() if has_batch_statistics(layer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no batch statistics to take over several ranks")
    for place, layer in layers.items():
        if not isinstance(layer, RunningNormalizer) and type(layer) not in KINDS:
            name = f"{place or type(model).__name__} is a {type(layer).__name__}"
            raise ValueError(f"{name}: expected one of {', '.join(kind.__name__ for kind in KINDS)}")
    new = {}
    for layer in layers.values():
        if isinstance(layer, RunningNormalizer):
            layer.sync, layer.process_group = True, process_group
        else:
            new[id(layer)] = nn.SyncBatchNorm.convert_sync_batchnorm(layer, process_group)  # type: ignore[no-untyped-call]
            freeze_alike(new[id(layer)], layer)
    return put(model, new)


def has_batch_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, Normalizer):
        return isinstance(layer, RunningNormalizer) and layer.track_running_stats
    return isinstance(layer, nn.BatchNorm1d) or is_batch_norm(layer)
