"""Runs compared: tables, statistics, figures, a page; and figures of ratios."""
