#!/usr/bin/env python3
"""Compare runs: a Markdown table of measured figures, averaged over seeds, beside the published ones."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, exit_on_error, in_one_line


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument("--out", metavar="FILE.md", type=Path, required=True, help="the output file")
    arguments = parser.parse_args()

    from en.reports.tables import write_report

    write_report(arguments.runs, arguments.out)
    print(in_one_line(f"{arguments.out}: {len(arguments.runs)} runs"))


if __name__ == "__main__":
    exit_on_error(main)
