#!/usr/bin/env python3
"""Prepare a data set for the FFCV loader: python scripts/prepare_data.py --help; also en-prepare."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.commands.prepare import main

if __name__ == "__main__":
    main()
