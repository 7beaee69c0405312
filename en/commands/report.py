"""Compare runs: en-report RUN [RUN ...] --out DIR; also scripts/report.py.

Tables, curves and statistics over seeds beside the published figures, as a page and as files.
"""

import argparse
from pathlib import Path

from en.errors import Parser, exit_on_error, in_one_line


def report() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders, or folders of run folders, such as a suite"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder that the report is written into"
    )
    arguments = parser.parse_args()

    from en.reports.files import write_report
    from en.reports.terminal import show

    show(write_report(arguments.runs, arguments.out))
    print(in_one_line(f"{arguments.out / 'report.html'}"))


def main() -> None:
    exit_on_error(report, extras="train,report")


if __name__ == "__main__":
    main()
