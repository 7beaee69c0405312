"""Ranks and devices, sums over ranks, which rank fell silent."""
