#!/usr/bin/env python3
"""Compare runs: python scripts/report.py --help; also en-report."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.commands.report import main

if __name__ == "__main__":
    main()
