"""Networks by name with a chosen normalizer, and what they cost."""

from en.models.build import build_model
from en.models.complexity import Complexity, complexity
from en.models.options import OptionError
from en.models.output import check_output, skeleton

__all__ = ["Complexity", "OptionError", "build_model", "check_output", "complexity", "skeleton"]
