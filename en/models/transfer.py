"""Weights of one network taken into another that has a head of its own, every tensor accounted for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from en.norm import Normalizer, load_batch_norm
from en.norm.pretrained import is_beside
from en.norm.single import BatchNorm2d
from en.norm.weight_options import KEY

BATCH_NORM = "bn"
COUNT = "num_batches_tracked"  # which files from before torch 0.4.1 lack
OPTIONAL = (COUNT, KEY, "trained_pixels")  # the latter two, those from before en and sn had them


class Transfer(NamedTuple):
    """Lists what became of weights, by the names of tensors.

    Attributes:
        taken: of the weights, those that the network has now.
        fresh: of the network, those that are still its own.
        dropped: of the weights, those that it has no place for.
    """

    taken: list[str]
    fresh: list[str]
    dropped: list[str]


def transfer(model: nn.Module, weights: Mapping[str, Tensor], head: Sequence[str], same_head: bool) -> Transfer:
    """Loads weights into a network whose head alone may be another one.

    The head is taken as a whole where it is the same one and every tensor of it fits; else it stays as it is. Weights
    of batch normalization go into normalizers that begin on it, as by `load_batch_norm`.

    Args:
        weights: by their names in the network, wherever its normalizers are batch normalization still.
        head: names of the modules whose tensors may be new; see `Task.head`.
        same_head: whether the weights' head tells the same things apart.
    Raises: ValueError, with the network untouched, that names a tensor outside the head that is missing, too much, of
        another shape or type or not finite, and a normalizer that cannot take those of batch normalization over.
    """
    own = model.state_dict()
    ours, theirs = within(own, head), within(weights, head)
    kept = same_head and {*ours} == {*theirs} and all(own[name].shape == weights[name].shape for name in ours)
    fresh, dropped = ([], []) if kept else (ours, theirs)
    whole = {name: value for name, value in weights.items() if name not in dropped}
    taken = list(whole)
    refuse_unusable(whole, own)
    whole |= {name: own[name] for name in fresh}
    if is_of_batch_norm(model, whole):
        refuse_far_from_batch_norm(model)
        load_batch_norm(model, whole)
    else:
        load_alike(model, whole)
    return Transfer(taken, fresh, dropped)


def within(names: Iterable[str], modules: Sequence[str]) -> list[str]:
    """Lists the tensors of some modules."""
    return [name for name in names if name.startswith(tuple(f"{module}." for module in modules))]


def refuse_unusable(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names a tensor of another kind of numbers than the network's, or of none."""
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{name} is a {value.layout} tensor: expected one with values, without gaps")
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name} is of {value.dtype}: expected {own[name].dtype}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite: expected the weights of a training that did not diverge")


def normalizers(model: nn.Module) -> dict[str, Normalizer]:
    return {place: layer for place, layer in model.named_modules() if isinstance(layer, Normalizer)}


def is_of_batch_norm(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Tells whether weights have batch normalization, and nothing else, wherever the network has a normalizer."""
    for place in normalizers(model):
        names = {name.removeprefix(f"{place}.") for name in weights if name.startswith(f"{place}.")}
        if "running_mean" not in names or any(is_beside(name) and name != COUNT for name in names):
            return False
    return True


def replaces_batch_norm(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Tells whether the network computes something else of these weights than the network that they are from."""
    others = any(not isinstance(layer, BatchNorm2d) for layer in normalizers(model).values())
    return others and is_of_batch_norm(model, weights)


def refuse_far_from_batch_norm(model: nn.Module) -> None:
    """Raises ValueError for a normalizer that does not begin on batch normalization."""
    for place, layer in normalizers(model).items():
        if not isinstance(layer, BatchNorm2d) and getattr(layer, "start", None) != BATCH_NORM:
            raise ValueError(
                f"weights of batch normalization for {place}, a {type(layer).__name__}: expected "
                f"norm.name={BATCH_NORM}, or a normalizer that begins on it by norm.start={BATCH_NORM}"
            )


def load_alike(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads weights that have the network's names. Raises ValueError that names a tensor that does not fit."""
    own = model.state_dict()
    for name, value in own.items():
        found = weights.get(name)
        if name.rpartition(".")[2] not in OPTIONAL and (found is None or found.shape != value.shape):
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(f"{name} {what}: expected {tuple(value.shape)}")
    for name in weights:
        if name not in own:
            raise ValueError(f"{name}: no such parameter or buffer in this {type(model).__name__}")
    # Over the network's own, which knows the versions of its layers: some ask for it.
    own.update(weights)
    try:
        model.load_state_dict(own)
    except RuntimeError as error:  # of layers that compare what else is kept with the weights
        raise ValueError(" ".join(str(error).split())) from error


@torch.no_grad()
def copy_tensors(source: nn.Module, target: nn.Module, names: Iterable[str]) -> None:
    """Copies tensors of a network into those of the same names in another."""
    values, places = source.state_dict(), target.state_dict()
    for name in names:
        places[name].copy_(values[name])
