#!/usr/bin/env python3
"""Compare runs: tables, curves and statistics over seeds beside the published figures, as a page and as files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from en.errors import Parser, UserError, exit_on_error, in_one_line


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders, or folders of run folders, such as a suite"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder that the report is written into"
    )
    arguments = parser.parse_args()

    try:
        from en.reports.files import write_report
        from en.reports.terminal import show
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name}: not installed: expected this package with its extra [report]") from error
    show(write_report(arguments.runs, arguments.out))
    print(in_one_line(f"{arguments.out / 'report.html'}"))


if __name__ == "__main__":
    exit_on_error(main)
