"""Guards against libraries that would fold or convert a layer as plain batch normalization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Unconvertible:
    """`affine` of a layer that no batch normalization stands for: what it is cannot be asked, only shown."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __bool__(self) -> bool:
        raise ValueError(
            f"{self.kind} cannot become another library's batch normalization: expected en.norm.convert_sync(model) "
            "for synchronized statistics (instead of any other conversion), en.norm.freeze(model) for frozen ones"
        )


ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


class MixtureEps(float):
    """eps of a mixture: a number like any other, except that adding it to the layer's own running_var is refused.

    Whoever folds batch normalization into the convolution before it does that, and looks at no class:
    torch.nn.utils.fusion and timm's networks. A mixture is no affine map in evaluation, and has all that they read.
    Copied or saved, it is a plain float.
    """

    own: Tensor | None = None

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for eps in args if function in ADDITIONS else ():
            if isinstance(eps, cls) and eps.own is not None and any(part is eps.own for part in args):
                raise ValueError(
                    "running_var + eps of a mixture of normalizers, which cannot be folded into a convolution: "
                    "expected batch normalization, or running_var + added_eps for another purpose"
                )
        plain = {name: float(part) if isinstance(part, cls) else part for name, part in (kwargs or {}).items()}
        return function(*(float(part) if isinstance(part, cls) else part for part in args), **plain)

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)
