"""Networks of torchvision and timm by name, with a chosen normalizer put in."""

import contextlib
import difflib
import io
from collections.abc import Mapping

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from en.models.options import Build, OptionError, Options, checked_options, reason
from en.norm import replace_norm

WITHOUT_HEADS = {"aux_logits": False, "init_weights": True}
LIBRARY_OPTIONS: dict[str, dict[str, bool]] = {"googlenet": WITHOUT_HEADS, "inception_v3": WITHOUT_HEADS}


def build_model(
    name: str,
    num_classes: int,
    norm: str = "bn",
    norm_options: Mapping[str, object] | None = None,
    zero_init_last_gamma: bool | None = None,
    dropout: float = 0.0,
    options: Options | None = None,
) -> nn.Module:
    """A freshly initialized network, for a classifier (N, 3, H, W) -> (N, num_classes).

    The auxiliary classifiers of torchvision's googlenet and inception_v3 are left out (our choice). Whether another
    network has one output in training, `check_output` finds out.

    Args:
        name: a torchvision classification network, or `timm/` and one of timm's.
        num_classes: outputs of the classifier.
        norm, norm_options: as for `en.norm.build_norm`; every batch normalization of the network is replaced.
        zero_init_last_gamma: whether the last scale of each residual block starts at zero; None: the library's way.
        dropout: probability of dropping an input of the classifier, 0 to 1.
        options: further keyword arguments of the network's class in its library; see `checked_options`.
    Raises: ValueError for an unknown network or one that an argument cannot be applied to; OptionError for the options.
    """
    build = build_timm if name.startswith("timm/") else build_torchvision
    model = build(name, num_classes, zero_init_last_gamma, options or {})
    if dropout:
        put_dropout(model, name, num_classes, dropout)
    return replace_norm(model, norm, **dict(norm_options or {}))  # type: ignore[arg-type]


def build_torchvision(name: str, num_classes: int, zero_init: bool | None, options: Options) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(unknown_network(name, [*known, "timm/" + name], "a torchvision network or timm/NAME"))
    zero = {} if zero_init is None else {"zero_init_residual": zero_init}
    own = {"num_classes": num_classes, **LIBRARY_OPTIONS.get(name, {})}
    return with_options(name, zero, options, lambda kw: torchvision.models.get_model(name, **own, **kw))


def build_timm(name: str, num_classes: int, zero_init: bool | None, options: Options) -> nn.Module:
    known = [f"timm/{known}" for known in timm.list_models()]
    if name.split(".")[0] not in known:
        raise ValueError(unknown_network(name, known, "one of timm's networks after timm/"))
    zero = {} if zero_init is None else {"zero_init_last": zero_init}
    short = name.removeprefix("timm/")
    return with_options(name, zero, options, lambda kw: timm.create_model(short, num_classes=num_classes, **kw))


def with_options(name: str, zero: dict[str, bool], options: Options, build: Build) -> nn.Module:
    """build(zero and options), with the library's refusal a ValueError that names the network and the key at fault.

    Args:
        zero: the library's name of zero-initialization and whether to do it, or nothing.
    """
    checked = checked_options(name, options, build)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return build(zero | checked)
    except TypeError as error:
        if not zero:
            raise ValueError(f"network {name!r}: expected one that takes num_classes: {error}") from error
        why = "it has no residual blocks with such an option in its library"
        raise ValueError(f"zero_init_last_gamma={next(iter(zero.values()))} for {name}: {why}") from error
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"network {name!r}: expected one that its library can build: {error}") from error
    except Exception as error:
        if not checked:
            raise
        raise OptionError(name, options, f"what its library can build: {reason(error)}") from error


def unknown_network(name: str, known: list[str], expected: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"network {name!r}: expected {expected}{hint}"


class DropoutLinear(nn.Linear):
    """nn.Linear whose input is dropped out in training, with the parameter names of nn.Linear.

    Args:
        dropout: probability of dropping an input, 0 to 1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dropout: float) -> None:
        super().__init__(in_features, out_features, bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return super().forward(F.dropout(x, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


def put_dropout(model: nn.Module, name: str, num_classes: int, dropout: float) -> None:
    """Puts dropout before the classifier: the network's last linear layer, which has to have num_classes outputs."""
    linear = [(place, layer) for place, layer in model.named_modules() if type(layer) is nn.Linear]
    if not linear or linear[-1][1].out_features != num_classes:
        raise ValueError(f"dropout={dropout} for {name}: expected a network that ends in a linear classifier")
    place, old = linear[-1]
    new = DropoutLinear(old.in_features, old.out_features, old.bias is not None, dropout)
    with torch.no_grad():
        new.load_state_dict(old.state_dict())
    parent, _, attribute = place.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
