"""The commands en-train, en-eval, en-prepare, en-ablate, en-ratios and en-report: train.py, eval.py and scripts/."""
