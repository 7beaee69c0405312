"""Normalization layers for (N, C, H, W): bn, in, ln, gn, sn, ssn and en. Imports torch and en.native alone."""

from en.norm.averages import update_statistics
from en.norm.base import Normalizer, RunningNormalizer
from en.norm.combined import MapsWarning
from en.norm.decay import param_groups
from en.norm.exemplar import ExemplarNorm2d
from en.norm.freezing import freeze, unfreeze
from en.norm.pretrained import load_batch_norm
from en.norm.ratios import record_ratios
from en.norm.registry import AS_PUBLISHED, NORMALIZERS, build_norm, norm_options
from en.norm.replace import replace_norm
from en.norm.sparse import SparseSwitchableNorm2d
from en.norm.switchable import SwitchableNorm2d
from en.norm.sync import convert_sync
from en.norm.trained_maps import fix_maps
from en.norm.weight_options import without_options

__all__ = [
    "AS_PUBLISHED",
    "NORMALIZERS",
    "ExemplarNorm2d",
    "MapsWarning",
    "Normalizer",
    "RunningNormalizer",
    "SparseSwitchableNorm2d",
    "SwitchableNorm2d",
    "build_norm",
    "convert_sync",
    "fix_maps",
    "freeze",
    "load_batch_norm",
    "norm_options",
    "param_groups",
    "record_ratios",
    "replace_norm",
    "unfreeze",
    "update_statistics",
    "without_options",
]
