"""Experiments, outside the package: a second trainer for many small runs on one GPU, and a look at first steps."""
