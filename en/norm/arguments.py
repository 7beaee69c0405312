"""Arguments of the normalizers, checked: every refusal is a ValueError that names the argument and what is allowed."""

from collections.abc import Sequence
from reprlib import repr as shown

from torch import Tensor

from en.norm import statistics

MOST = 2**16  # channels, groups, hidden units: more than any network has, and few enough to be allocated (our choice)


def check_input(x: Tensor, num_features: int) -> None:
    """Raises ValueError unless x is (N, num_features, H, W) of a floating-point type; N may be 0, H and W may not."""
    if x.ndim != 4 or x.shape[1] != num_features:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected (N, {num_features}, H, W)")
    if not x.is_floating_point():
        raise ValueError(f"input of type {x.dtype}: expected a floating-point type")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected H and W above 0")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(name: str, value: int, most: int = MOST) -> int:
    """`value` if it is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name}={shown(value)}: expected a whole number from 1 to {most}")
    return value


def positive(name: str, value: float) -> float:
    """`value` if it is a number above 0."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"{name}={shown(value)}: expected a number above 0")
    return value


def flag(name: str, value: bool) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)}: expected true or false")
    return value


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value` if it is among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(allowed)}")
    return value


def check_groups(groups: int | None, num_features: int) -> int:
    """The number of groups for gn: as given if it divides num_features, gcd(32, C) for None."""
    if groups is None:
        return statistics.default_groups(num_features)
    if num_features % whole("groups", groups):
        raise ValueError(f"groups={groups}: expected a divisor of the layer's {num_features} channels")
    return groups


def check_normalizers(normalizers: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, if they are known, different and at least one."""
    allowed = ", ".join(statistics.NAMES)
    if isinstance(normalizers, str) or not isinstance(normalizers, Sequence) or not normalizers:
        raise ValueError(f"normalizers={shown(normalizers)}: expected a list of one or more of {allowed}")
    unknown = [name for name in normalizers if name not in statistics.NAMES]
    if unknown or len(set(normalizers)) < len(normalizers):
        raise ValueError(f"normalizers={shown(list(normalizers))}: expected different names out of {allowed}")
    return tuple(normalizers)
