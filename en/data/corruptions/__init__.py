"""Corruptions of images that networks are tested on: "C-like", after ImageNet-C's kinds, with constants of our own."""

from en.data.corruptions.registry import CORRUPTIONS, SEVERITIES, Corruption

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption"]
