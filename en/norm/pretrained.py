"""What a network trained with batch normalization has learned, taken over by the normalizers in its place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from en.norm.base import Normalizer

AFFINE = ("weight", "bias")
AVERAGES = ("running_mean", "running_var", "num_batches_tracked")
FUSED_PARTS = ("drop", "act")
"""What a fused layer of timm's has besides: see replace_norm."""


def taken_over(norm: Normalizer, bn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a normalizer's state that batch normalization's state gives: scale, shift and averages.

    Every one of K scales is that of batch normalization, and the K shifts add up to its own.
    """
    rows = norm.weight.numel() // norm.num_features
    affine = {"weight": bn["weight"].repeat(rows), "bias": (bn["bias"] / rows).repeat(rows)}
    kept = dict(norm.named_buffers(recurse=False))
    return affine | {name: bn[name] for name in AVERAGES if name in bn and name in kept}


def load_batch_norm(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads the state_dict of a network with batch normalization into the same network after replace_norm().

    Scale, shift and running averages go into the normalizers in batch normalization's place; what those have besides,
    such as EN's gate, stays as it is. Averages are dropped where a normalizer keeps none.

    Raises: ValueError, with the model untouched, for a key that is missing or too much, or a tensor of another shape.
    """
    state, own = dict(state_dict), model.state_dict()
    refuse_wrapped(state, own)
    beside: set[str] = set()
    for place, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, Normalizer):
            prefix = f"{place}." if place else ""
            bn = {name: state.pop(prefix + name) for name in AFFINE + AVERAGES if prefix + name in state}
            for name in AFFINE:
                expect(prefix + name, bn.get(name), (layer.num_features,))
            state |= {prefix + name: value for name, value in taken_over(layer, bn).items()}
            beside |= {prefix + name for name in layer.state_dict() if is_beside(name)}
    for key, value in own.items():
        if isinstance(value, Tensor) and (
            key not in beside or key in state
        ):  # what else is kept is the module's affair
            expect(key, state.get(key), tuple(value.shape))
    for key in state:
        if key not in own:
            raise ValueError(f"{key}: no such parameter or buffer in this {type(model).__name__}")
    own.update(state)  # which knows the versions of its layers: some ask for it
    model.load_state_dict(own)


def refuse_wrapped(state: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Raises ValueError where no key fits because a wrapper put a prefix before all of them, or a dict around them."""
    if state.keys() & own.keys():
        return
    for name, value in state.items():
        if isinstance(value, Mapping) and value:
            raise ValueError(f"the state_dict is a checkpoint with a dict of its own under {name!r}: expected that one")
    for long, short, holder in ((state, own, "the state_dict"), (own, state, "the model")):
        for key in short:
            found = next((name for name in long if name.endswith(f".{key}")), None)
            if found is not None:
                prefix = found.removesuffix(key)
                raise ValueError(
                    f"{found} in {holder}: expected {key}: a wrapper, such as DistributedDataParallel (module.) or "
                    f"torch.compile (_orig_mod.), has put {prefix!r} in front: expected what it wraps, "
                    "or keys without that, by key.removeprefix"
                )


def is_beside(name: str) -> bool:
    """Tells whether a part of a normalizer's state has no counterpart in each state_dict of batch normalization's."""
    return name.split(".")[0] not in (*AFFINE, *AVERAGES[:2], *FUSED_PARTS)


def expect(key: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the value of a state_dict is there, a tensor with values, and of the shape."""
    if value is not None and (not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided):
        raise ValueError(f"{key} is a {type(value).__name__}: expected a tensor with values, without gaps")
    if value is None or tuple(value.shape) != shape:
        found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
        raise ValueError(f"{key} {found}: expected {shape}, of a network with batch normalization")
