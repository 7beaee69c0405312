#!/usr/bin/env python3
"""Train: python train.py --help, or under torchrun. Also en-train."""

from en.commands.train import main

if __name__ == "__main__":
    main()
