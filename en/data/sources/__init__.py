"""Where images come from before preparation: one file a form, and the registry of the forms."""

from en.data.sources.folders import read_folders
from en.data.sources.registry import read_form, read_source
from en.data.sources.source import ALL_SPLITS, SPLITS, Sample, Source, as_text
from en.data.sources.val_labels import Hints
from en.data.sources.wordnet import only

__all__ = [
    "ALL_SPLITS",
    "SPLITS",
    "Hints",
    "Sample",
    "Source",
    "as_text",
    "only",
    "read_folders",
    "read_form",
    "read_source",
]
