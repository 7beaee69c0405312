#!/usr/bin/env python3
"""Run a suite: python scripts/ablate.py --help; also en-ablate."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.commands.ablate import main

if __name__ == "__main__":
    main()
