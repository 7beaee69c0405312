"""Where images come from before preparation: one file a form, and the registry of the forms."""

from en.data.sources.folders import read_folders
from en.data.sources.registry import read_form, read_source
from en.data.sources.source import ALL_SPLITS, SPLITS, Sample, Source, as_text

__all__ = ["ALL_SPLITS", "SPLITS", "Sample", "Source", "as_text", "read_folders", "read_form", "read_source"]
