"""Ablations: a file that names many runs, what of them is missing, and the processes that run it."""
