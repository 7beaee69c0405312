"""A normalizer put into a network that was built with batch normalization."""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from en.norm.base import Normalizer, RunningNormalizer
from en.norm.fusion import refuse_fusions
from en.norm.pretrained import taken_over
from en.norm.registry import build_norm, norm_options

REPLACED = ("BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct")
FUSED = REPLACED[2:]
HOLDERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def replace_norm(
    model: nn.Module, name: str, *, only: str | Sequence[str] = "*", skip: str | Sequence[str] = (), **options: object
) -> nn.Module:
    """Replaces every batch normalization of `model` in place and returns the model (a new layer if it is itself one).

    nn.BatchNorm2d and nn.SyncBatchNorm are replaced, the latter by a layer with `sync` on, and timm's BatchNormAct2d
    and SyncBatchNormAct with their activation, which the new layer then applies. nn.BatchNorm1d, which does not
    normalize images, stays; one that has become nn.SyncBatchNorm cannot be told apart: `skip` it. The new layers keep
    the old ones' affine values (so a zero-initialized last gamma stays zero), running averages, device, dtype and mode,
    their eps, momentum and sync unless given in `options`, and what of weight and bias does not learn. A layer used in
    several places stays shared. For a trained network `start="bn"` keeps en and sn close to its function.

    Args:
        only, skip: patterns of fnmatch for the places in the network, such as "layer4.*": what is to be replaced and
            what not.
    Raises: ValueError, with the model untouched, for a bad name or option, a pattern that matches nothing, a network
        without batch normalization, or one that cannot be replaced, named by its place in the network; and for a
        network that DistributedDataParallel or FSDP holds.
    """
    layers = chosen(model, patterns(only), patterns(skip))
    for place, layer in layers.items():
        refuse_irreplaceable(place or type(model).__name__, layer)
    refuse_shared(model, layers)
    refuse_wrapped(model)
    new = {id(layer): successor(place, layer, name, options) for place, layer in layers.items()}
    warn_of_hooks(layers)
    model = put(model, new)
    refuse_fusions(model)
    return model


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def chosen(model: nn.Module, only: Sequence[str], skip: Sequence[str]) -> dict[str, nn.Module]:
    """Batch normalizations of any kind but nn.BatchNorm1d, by their places. Raises ValueError where there is none."""
    named = model.named_modules(remove_duplicate=False)
    layers = {place: layer for place, layer in named if is_batch_norm(layer)}
    for argument, given in (("only", only), ("skip", skip)):
        for pattern in given if layers else ():
            if not fnmatch.filter(layers, pattern):
                raise ValueError(f"{argument}={pattern!r}: expected a pattern for a batch normalization's place")
    # One in several places is chosen by any of them, and stays by any.
    wanted = {id(layer) for place, layer in layers.items() if matches(place, only)}
    wanted -= {id(layer) for place, layer in layers.items() if matches(place, skip)}
    found = {place: layer for place, layer in model.named_modules() if id(layer) in wanted}
    if not found:
        raise ValueError(f"{type(model).__name__} has no batch normalization to replace{what_is_there(model)}")
    return found


def what_is_there(model: nn.Module) -> str:
    """Returns the normalizers that a network has instead of batch normalization of images, for messages; or ''."""
    kinds = Counter(
        type(layer).__name__ for layer in model.modules() if isinstance(layer, (Normalizer, nn.BatchNorm1d))
    )
    if not kinds:
        return ""
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    if all(isinstance(layer, nn.BatchNorm1d) for layer in model.modules() if type(layer).__name__ in kinds):
        return f": it has {listed}, which normalize vectors: expected nn.BatchNorm2d"
    return f": it has {listed} already: expected a network as its library builds it"


def matches(place: str, given: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in given)


def is_batch_norm(layer: nn.Module) -> bool:
    """Tells whether `layer` is batch normalization of images, of any library, fused, frozen or synchronized."""
    if isinstance(layer, (Normalizer, nn.BatchNorm1d)):
        return False
    return any("BatchNorm" in cls.__name__ for cls in type(layer).__mro__[:-1])


def refuse_irreplaceable(place: str, layer: nn.Module) -> None:
    """Raises ValueError that names the layer unless it is one of REPLACED, affine and with averages."""
    kind = type(layer).__name__
    known = type(layer) in (nn.BatchNorm2d, nn.SyncBatchNorm) or kind in FUSED
    if not known or not isinstance(layer, _BatchNorm):
        raise ValueError(
            f"{place} is a {kind}, which cannot be replaced: expected one of {', '.join(REPLACED)}, or skip={place!r}"
        )
    if not layer.affine or not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        missing = "affine parameters" if not layer.affine else "running statistics"
        raise ValueError(f"{place} is a {kind} without {missing}, which no normalizer here stands for")
    for name in ("weight", "bias"):
        if not isinstance(layer._parameters.get(name), nn.Parameter):
            raise ValueError(f"{place} is a {kind} whose {name} is no parameter of its own: expected one that is")


def refuse_shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raises ValueError where a layer's parameter is also another module's, which would keep it for itself."""
    owners: dict[int, str] = {}
    for place, module in model.named_modules():
        for parameter in module._parameters.values():
            other = place if parameter is None else owners.setdefault(id(parameter), place)
            if other != place and (place in layers or other in layers):
                raise ValueError(f"{other} and {place} share a parameter: expected parameters of their own")


def refuse_wrapped(model: nn.Module) -> None:
    """Raises ValueError where somebody holds the parameters that would go: their new ones would never be averaged."""
    for place, module in model.named_modules():
        kinds = {cls.__name__ for cls in type(module).__mro__} & set(HOLDERS)
        sharded = [
            name for name, part in module.named_parameters(recurse=False) if type(part.data).__name__ == "DTensor"
        ]
        if kinds or sharded:
            holder = f"{place or 'the model'} is a {type(module).__name__}" + (
                " of sharded parameters" if sharded else ""
            )
            raise ValueError(f"{holder}, which keeps the parameters of now: replace first, then wrap")


def successor(place: str, layer: nn.Module, name: str, options: dict[str, object]) -> Normalizer:
    """The layer that takes the place of a batch normalization. Raises ValueError that names the place."""
    assert isinstance(layer, _BatchNorm)
    inherited = {"eps": layer.eps, "momentum": layer.momentum}
    if isinstance(layer, nn.SyncBatchNorm):
        inherited["sync"] = True
    known = norm_options(name)
    try:
        norm = build_norm(name, layer.num_features, **{k: v for k, v in inherited.items() if k in known} | options)
    except ValueError as error:
        raise ValueError(f"{place or type(layer).__name__}: {error}") from error
    norm.to(device=layer.weight.device, dtype=layer.weight.dtype)
    for name, part in layer.named_buffers(recurse=False):  # which may have kept more precision than the weights
        if norm._buffers.get(name) is not None:
            setattr(norm, name, norm.get_buffer(name).to(part.dtype))
    norm.load_state_dict(norm.state_dict() | taken_over(norm, layer.state_dict()))
    if isinstance(norm, RunningNormalizer) and isinstance(layer, nn.SyncBatchNorm):
        norm.process_group = layer.process_group
    norm.place = place
    freeze_as(norm, layer)
    if type(layer).__name__ in FUSED:
        finish_fused(norm, layer)
    return norm.train(layer.training)


def freeze_as(norm: Normalizer, layer: _BatchNorm) -> None:
    """Lets weight and bias learn where those of `layer` do, and what the ratios come from where either does."""
    learns = {"weight": layer.weight.requires_grad, "bias": layer.bias.requires_grad}
    for name, parameter in norm.named_parameters():
        parameter.requires_grad_(learns.get(name, any(learns.values())))
    if getattr(layer, "frozen", False):  # by en.norm.freeze
        norm.frozen = True
        norm.learned = [name for name, _ in norm.named_parameters()] if layer.learned else []


def finish_fused(norm: Normalizer, layer: nn.Module) -> None:
    """Gives a normalizer what a fused layer has besides."""
    norm.drop, norm.act = layer.drop, layer.act
    norm.register_forward_hook(drop_and_activate)


def drop_and_activate(norm: nn.Module, _: object, y: Tensor) -> Tensor:
    """The rest of a fused layer, as a forward hook, so that the layer keeps the names of its parameters."""
    return norm.act(norm.drop(y))  # type: ignore[no-any-return, operator]


def warn_of_hooks(layers: Mapping[str, nn.Module]) -> None:
    """Warns of hooks that are lost with the layers that they are on."""
    kinds = [kind for kind in vars(nn.Module()) if kind.endswith("_hooks")]
    hooked = [place for place, layer in layers.items() if any(getattr(layer, kind) for kind in kinds)]
    if hooked:
        warnings.warn(f"hooks are lost with the layers that replace_norm replaces: {', '.join(hooked)}", stacklevel=3)


def put(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """Puts new layers in place of those with these ids. Returns the model, or what is put in its own place."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in new:
                setattr(parent, name, new[id(child)])
    return new.get(id(model), model)
