"""The files of a report."""

import hashlib
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from en import durable
from en.errors import UserError, warn
from en.reports.page import page
from en.reports.report import Report, make_report
from en.reports.tables import csv, latex, literal, markdown, markdown_notes, to_json

LIST = "files.sha256"  # of the files of a report, as `sha256sum -c` reads it
LISTED = re.compile(
    r"([0-9a-f]{64})  ((?:tables|figures)/[\w-]+\.(?:csv|tex|svg|pdf|jpg|png))"
)  # not report.*, never removed


def write_report(paths: Iterable[str], out: Path) -> Report:
    """Makes the report of some runs and writes its files into the folder `out`, with a list of them, LIST.

    Files of an earlier report, by its list, that this one does not have are removed if they are as they were written;
    changed ones stay, with a warning. Whatever else is in the folder stays as it is.

    Raises: UserError for runs that cannot be read, before anything is written, and for a folder that cannot be written.
    """
    report = make_report(paths)
    contents = all_files(report)
    try:
        remove_earlier(out, contents)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        # The list comes first, so that whatever a kill leaves of this report is on it.
        for name, content in {LIST: listed.encode(), **contents}.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {out}: {reason}: expected a folder that can be written") from error
    return report


def remove_earlier(out: Path, keep: Collection[str]) -> None:
    """Removes what an earlier report wrote into the folder `out`, but for the names to keep. Raises OSError."""
    path = out / LIST
    if not path.is_file():
        warn_of_unlisted(out, keep)
        return
    lines = path.read_bytes().decode(errors="replace").splitlines()
    for digest, name in (found.groups() for line in lines if (found := LISTED.fullmatch(line))):
        path = out / name
        if name in keep or not path.is_file():
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            path.unlink()
            with suppress(OSError):  # the folder holds more
                path.parent.rmdir()
        else:
            warn(f"{path}: of an earlier report, and changed since: left as it is")


def warn_of_unlisted(out: Path, keep: Collection[str]) -> None:
    """Warns of what may be of a report by a version that kept no list."""
    if (out / "report.json").is_file():
        names = [f"{path.parent.name}/{path.name}" for kind in ("tables", "figures") for path in (out / kind).glob("*")]
        others = sorted({*names} - {*keep})
        if others:
            warn(f"{out}: {len(others)} files that may be of an earlier report are left, such as {others[0]}")


def all_files(report: Report) -> dict[str, bytes]:
    """Reads what each file holds, by its name within the folder."""
    texts = {"report.md": markdown_page(report), "report.html": page(report), "report.json": to_json(report.data())}
    for table in report.tables:
        if table.rows:
            texts |= {f"tables/{table.name}.csv": csv(table), f"tables/{table.name}.tex": latex(table)}
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    for picture in report.pictures:
        contents |= {f"figures/{picture.name}.svg": picture.svg, f"figures/{picture.name}.pdf": picture.pdf}
    contents |= {f"figures/{photo.file}": photo.content for photo in report.photos if photo.file}
    return contents


def markdown_page(report: Report) -> str:
    """The report in Markdown; its pictures are the files beside it."""
    lines = [f"# {literal(report.title)}", ""]
    lines += [line for said in report.headlines for line in (f"**{literal(said)}**", "")]
    lines += [literal(report.recipe), "", report.lead, ""]
    for section in report.sections:
        lines += [f"## {literal(section.title)}", "", *markdown_notes(section.notes)]
        for table in section.tables:
            lines += ["", f"### {literal(table.title)}", "", *(markdown(table) if table.rows else [])]
            lines += [] if table.rows else markdown_notes(table.notes)
        for picture in section.pictures:
            lines += [f"![{literal(picture.alt)}](figures/{picture.name}.svg)", ""]
        for photo in section.photos:
            shown = [f"![{literal(photo.alt)}](figures/{photo.file})", ""] if photo.file else []
            lines += [literal(photo.title), "", *shown]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
