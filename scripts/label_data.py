#!/usr/bin/env python3
"""Give a set's training samples other labels: python scripts/label_data.py --help; also en-labels."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.commands.labels import main

if __name__ == "__main__":
    main()
