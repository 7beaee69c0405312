"""A trainer of its own for small images, of which many run on one GPU at the same time; not the one of train.py."""
