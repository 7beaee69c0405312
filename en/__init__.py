"""en: training image classifiers whose normalization is a choice."""

__version__ = "0.1.0"
