"""Runs compared: tables, statistics, figures, a page; and below, the ratios of one."""
