#!/usr/bin/env python3
"""Look at the ratios of a trained EN network: python scripts/ratios.py --help; also en-ratios."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.commands.ratios import main

if __name__ == "__main__":
    main()
