"""The files of a report."""

import re
from collections.abc import Iterable
from pathlib import Path

from en import durable
from en.errors import UserError
from en.reports.page import page
from en.reports.report import Report, make_report
from en.reports.tables import csv, latex, literal, markdown, markdown_notes, to_json


def write_report(paths: Iterable[str], out: Path) -> Report:
    """Makes the report of some runs and writes its files into the folder `out`.

    Raises: UserError for runs that cannot be read, before anything is written, and for a folder that cannot be written.
    """
    report = make_report(paths)
    contents = all_files(report)
    try:
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {out}: {reason}: expected a folder that can be written") from error
    return report


def all_files(report: Report) -> dict[str, bytes]:
    """What each file holds, by its name within the folder."""
    texts = {"report.md": markdown_page(report), "report.html": page(report), "report.json": to_json(report.data())}
    for table in report.tables:
        if table.rows:
            texts |= {f"tables/{table.name}.csv": csv(table), f"tables/{table.name}.tex": latex(table)}
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    for picture in report.pictures:
        contents |= {f"figures/{picture.name}.svg": picture.svg, f"figures/{picture.name}.pdf": picture.pdf}
    return contents


def markdown_page(report: Report) -> str:
    """The report in Markdown; its pictures are the files beside it."""
    lines = [f"# {literal(report.title)}", "", report.lead, ""]
    for section in report.sections:
        lines += [f"## {literal(section.title)}", "", *markdown_notes(section.notes)]
        for table in section.tables:
            lines += ["", f"### {literal(table.title)}", "", *markdown(table)]
        for picture in section.pictures:
            lines += [f"![{literal(picture.alt)}](figures/{picture.name}.svg)", ""]
        lines += [f"- {literal(image.title)}" for image in section.images]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
