"""How the normalizers are fast: normalize(layer, x) is all that a layer calls, and NativePlan all that it may offer."""

from en.norm.kernels.cpu import native_in_graphs
from en.norm.kernels.dispatch import is_looked_into, native_parts, normalize
from en.norm.kernels.plan import SWITCH, NativePlan

__all__ = ["SWITCH", "NativePlan", "is_looked_into", "native_in_graphs", "native_parts", "normalize"]
