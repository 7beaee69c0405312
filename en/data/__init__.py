"""Images from class folders or FFCV files, behind one small protocol. Each loader is imported when asked for."""

from en.data.loader import Batch, ImageLoader, Part, Reading
from en.data.registry import LOADERS
from en.data.workers import naming_dead_workers

__all__ = ["LOADERS", "Batch", "ImageLoader", "Part", "Reading", "naming_dead_workers"]
