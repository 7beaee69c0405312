"""A source of images checked and written for the FFCV loader: all or nothing."""
