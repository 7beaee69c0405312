"""What scripts/gpu_check.py measures on a GPU, in parts, each a process of its own with a time limit.

It needs torch alone; what a part needs besides is named in parts.py.
"""
