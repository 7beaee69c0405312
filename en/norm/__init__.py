"""Normalization layers for (N, C, H, W): bn, in, ln, gn, sn, ssn and en. Imports torch and nothing else of en."""

from en.norm.base import Normalizer, RunningNormalizer
from en.norm.exemplar import ExemplarNorm2d
from en.norm.ratios import record_ratios
from en.norm.registry import NORMALIZERS, build_norm, norm_options
from en.norm.replace import replace_norm
from en.norm.sparse import SparseSwitchableNorm2d
from en.norm.switchable import SwitchableNorm2d

__all__ = [
    "NORMALIZERS",
    "ExemplarNorm2d",
    "Normalizer",
    "RunningNormalizer",
    "SparseSwitchableNorm2d",
    "SwitchableNorm2d",
    "build_norm",
    "norm_options",
    "record_ratios",
    "replace_norm",
]
