"""What scripts/gpu_check.py measures on a GPU, in parts, each a test and a process of its own with a time limit.

parts.py says what a part needs besides torch, pytest and pytest-timeout.
"""
