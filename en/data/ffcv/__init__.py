"""FFCV's file and its checks, FFCV's C functions, the loader."""
