"""The parts of scripts/gpu_check.py on a GPU, each a test and a process of its own with a time limit.

parts.py says what a part needs besides torch, pytest and pytest-timeout.
"""
