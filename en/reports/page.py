"""The report as one HTML page that needs nothing beside it."""

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from en.reports.figures import Photo
from en.reports.report import Report
from en.reports.templates import template_environment

STYLES = ("uplot/uPlot.min.css", "page.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "page.js", "charts.js")
LICENCE = "uplot/LICENSE"  # goes where uPlot goes
MOST_BYTES = 2_000_000  # of a page; photos that it has no room for stay beside it
FRAME = 500  # bytes around a photo, besides its words


def page(report: Report) -> str:
    """The page. Whatever the report's texts contain is shown letter for letter: the template escapes it."""
    # The styles and scripts are this package's own and uPlot's, and stand where no escape is read; by their hashes
    # these scripts run and no other.
    styles, scripts = ([Markup(read(name)) for name in names] for names in (STYLES, SCRIPTS))
    environment = template_environment()
    environment.filters["data"] = as_data
    template = environment.get_template("page.html.j2")
    held = {"report": report, "styles": styles, "scripts": scripts, "licence": Markup(read(LICENCE))}
    held |= {"hashes": Markup(" ".join(map(source, scripts))), "has_seeds": has_seeds}
    bare = template.render(held, embedded=[])
    return template.render(held, embedded=embedded(report.photos, MOST_BYTES - len(bare.encode("utf-8", "replace"))))


def read(name: str) -> str:
    return (files("en.reports") / name).read_text(encoding="utf-8")


def source(script: str) -> str:
    """The script as a source of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def as_data(chart: dict[str, Any]) -> Markup:
    """A chart as JSON that ends no element and opens none, whatever its names contain."""
    text = json.dumps(chart, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def has_seeds(chart: dict[str, Any]) -> bool:
    """Tells whether a chart has lines of several seeds to show on demand."""
    return any(line["seeds"] for line in chart["lines"])


def embedded(photos: Iterable[Photo], room: int) -> list[Photo]:
    """The photos that fit into so many bytes of a page, one by one, and those that are no file beside it."""
    found = []
    for photo in photos:
        size = len(photo.address) + FRAME + 2 * len(photo.alt)
        if size <= room or not photo.file:
            room -= size
            found.append(photo)
    return found
