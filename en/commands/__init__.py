"""The commands en-train, en-eval, en-prepare, en-labels, en-ablate, en-ratios, en-report; train.py, scripts/ etc."""
