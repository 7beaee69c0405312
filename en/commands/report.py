"""Compare runs: en-report RUN [RUN ...] --out DIR; also scripts/report.py.

Tables, curves and statistics over seeds beside the published figures, as a page and as files.
"""

import argparse
import webbrowser
from pathlib import Path

from en.errors import Parser, exit_on_error, in_one_line, warn


def report() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders, or folders of run folders, such as a suite"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder that the report is written into"
    )
    parser.add_argument(
        "--measured", metavar="FILE", type=Path, help="earlier scores over seeds, to show beside and to judge by"
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser of this machine")
    arguments = parser.parse_args()

    from en.reports.files import write_report
    from en.reports.runs import find_runs, read_run
    from en.reports.terminal import show
    from en.reports.verdict import read_measured, show_verdict

    measured = read_measured(arguments.measured) if arguments.measured else None
    show(write_report(arguments.runs, arguments.out))
    if measured:
        show_verdict([read_run(path) for path in find_runs(map(Path, arguments.runs))], measured)
    page = arguments.out / "report.html"
    print(in_one_line(f"{page}"))
    if arguments.open and not webbrowser.open(page.resolve().as_uri()):
        warn(f"{page}: no browser was found that shows it: expected one, or the BROWSER of the environment to name it")


def main() -> None:
    exit_on_error(report, extras="train,report")


if __name__ == "__main__":
    main()
