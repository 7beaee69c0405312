"""Networks built on trial: on the meta device, within bounds, and whether two of them are the same."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Options = Mapping[str, object]
Build = Callable[[Options], nn.Module]

MOST_PARAMETERS = 2**30  # 4 GiB in float32 (our choice)
MOST_LAYERS = 2**13  # the libraries' deepest network with batch normalization has 2,541 (our choice)


def outline(build: Build, options: Options) -> nn.Module:
    """The network on the meta device, where nothing is allocated. Raises ValueError for too large or empty layers."""
    with torch.device("meta"), bounded(), quiet():
        return build(options)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends the construction of a network whose layers or parameters become too many, while they become so."""
    layers = parameters = 0

    def count_layer(module: nn.Module, place: str, layer: nn.Module | None) -> None:
        nonlocal layers
        layers += 1
        if layers > MOST_LAYERS:
            raise ValueError(f"more than {MOST_LAYERS} layers")

    def count_parameter(module: nn.Module, place: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        size = 0 if parameter is None else parameter.numel()
        if parameter is not None and size == 0:
            raise ValueError(f"{place} of a {type(module).__name__} would be empty")
        parameters += size
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"more than {MOST_PARAMETERS} parameters")

    hooks = [
        register_module_module_registration_hook(count_layer),
        register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def drawn(build: Build, options: Options) -> nn.Module:
    """The network with its initial values, from one seed."""
    torch.default_generator.manual_seed(0)
    with quiet():
        return build(options)


def differ(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks differ in a layer, an attribute or, off the meta device, an initial value."""
    if [described(*layer) for layer in one.named_modules()] != [described(*layer) for layer in other.named_modules()]:
        return True
    return any(not equal(value, other.state_dict()[place]) for place, value in one.state_dict().items())


def described(place: str, layer: nn.Module) -> str:
    """A layer's place, class, attributes and the shapes of its parameters and buffers."""
    public = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return f"{place} {type(layer)} {public} {[(key, tuple(value.shape), value.requires_grad) for key, value in own]}"


def equal(one: Tensor, other: Tensor) -> bool:
    return one.is_meta or torch.equal(one, other)
