#!/usr/bin/env python3
"""Evaluate: python eval.py --help, or under torchrun. Also en-eval."""

from en.commands.eval import main

if __name__ == "__main__":
    main()
