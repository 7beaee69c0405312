"""The report as one HTML page that needs nothing beside it."""

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from en.errors import in_one_line
from en.reports.report import Report


def page(report: Report) -> str:
    """The page. Whatever the report's texts contain is shown letter for letter: the template escapes it."""
    style, script = (read(f"page.{kind}") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("en", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = in_one_line
    # The two are this package's own, and stand where no escape is read; the hash lets this script run and no other.
    return environment.get_template("page.html.j2").render(
        report=report, style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}"
    )


def read(name: str) -> str:
    return (files("en.reports") / name).read_text(encoding="utf-8")
