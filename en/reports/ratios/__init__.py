"""Ratios of a trained network by layer, sample, class and epoch: tables, figures, files, and their part of a report."""
