"""Names in a report, which may hold anything: they stand letter for letter in every file of it."""

import html
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_runs import report, run, table

from en.reports.page import SCRIPTS

NAMES = (
    "a|b",
    "`c`",
    "*d* _e_ **f**",
    "<script>g</script>",
    "[h](http://i)",
    "j\nk | l |\n# m",
    "$n$ ~o~ \\| p",
    "&lt;",
)


class Cells(HTMLParser):
    """The texts of a page's cells, row by row, and of its paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.paragraphs: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._open = "cell"
            self.rows[-1].append("")
        elif tag in ("p", "h1"):
            self._open = "paragraph"
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "p", "h1"):
            self._open = ""

    def handle_data(self, text: str) -> None:
        if self._open == "cell":
            self.rows[-1][-1] += text
        elif self._open == "paragraph":
            self.paragraphs[-1] += text


@pytest.fixture(scope="module", params=range(len(NAMES)))
def hostile(request, tmp_path_factory):
    """A report of two runs in which every name is a hostile one: that name, and where the report is."""
    name, tmp_path = NAMES[request.param], tmp_path_factory.mktemp("hostile")
    changes = {"model": name, "norm": name, "norm_options": {name: name}, "dataset": name, "hardware": name}
    folder = tmp_path / name.replace("/", "-")
    report([run(folder, **changes), run(tmp_path / "second", seed=1, **changes)], tmp_path / "out")
    return name.replace("\n", "\\n"), tmp_path / "out"


def expected(name: str) -> dict[str, str]:
    """The cells of the table of what was measured in which the name stands."""
    return {
        "variant": f"{name} ({name}={name})", "network": name, "data": f"{name}, 224 px", "hardware": f"{name}, 8 ranks"
    }  # fmt: skip


def test_names_stand_in_markdown_letter_for_letter(hostile):
    def rendered(cell: str) -> str:
        assert not re.search(r"(?<!&)[`*<>\[\]\\$~]|(?<!\w)_|_(?!\w)", cell), cell
        return html.unescape(cell)

    name, out = hostile
    lines = (out / "report.md").read_text().partition("## Measured")[2].splitlines()
    head, _, row = [line for line in lines if line.startswith("|")][:3]
    cells = dict(zip(*([cell.strip() for cell in line[1:-1].split("|")] for line in (head, row)), strict=True))
    assert {key: rendered(cells[key]) for key in expected(name)} == expected(name)
    assert f"No published figure is on file for {name}." in map(html.unescape, lines)
    for line in lines:
        assert line.startswith(("#", "|", "!", "**")) or not re.search(r"[`*<>\[\]\\$~]", line), line


def test_names_stand_in_the_page_letter_for_letter(hostile):
    name, out = hostile
    page = Cells()
    page.feed((out / "report.html").read_text())
    cells = dict(zip(*page.rows[:2], strict=True))
    assert {key: cells[key] for key in expected(name)} == expected(name)
    assert f"No published figure is on file for {name}." in page.paragraphs
    assert (out / "report.html").read_text().count("<script") == len(SCRIPTS)


def test_names_stand_in_csv_and_latex_letter_for_letter(hostile):
    name, out = hostile
    (row,) = table(out, "measured")
    assert {key: row[key] for key in expected(name)} == expected(name)
    head, line = [line for line in (out / "tables" / "measured.tex").read_text().splitlines() if line.endswith("\\\\")]
    head, line = (line.removesuffix("\\\\") for line in (head, line))
    cells = [[of_latex(cell) for cell in re.split(r"(?<!\\)&", part)] for part in (head, line)]
    found = dict(zip(*cells, strict=True))
    assert {key: found[key] for key in expected(name)} == expected(name)


def of_latex(cell: str) -> str:
    """What LaTeX sets; it fails at a character that LaTeX would take as a command."""
    words = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
    words |= {f"\\{char}": char for char in "&%$#_{}"}
    text = ""
    for part in re.findall(r"\\text\w+{}|\\.|.", cell.strip()):
        assert part in words or part not in "\\&%$#_{}~^", cell
        text += words.get(part, part)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_names_stand_in_figures_and_in_the_data_of_charts_letter_for_letter(name, tmp_path):
    report(
        [run(tmp_path / "a", norm=name, norm_options={name: name}), run(tmp_path / "b", norm="bn")], tmp_path / "out"
    )
    shown = name.replace("\n", "\\n")
    found = ElementTree.parse(tmp_path / "out" / "figures" / "compute.svg").iter("{http://www.w3.org/2000/svg}text")
    assert f"{shown} ({shown}={shown})" in {"".join(text.itertext()).strip() for text in found}
    page = (tmp_path / "out" / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert not re.search("[<>&]", data)
    assert f"{shown} ({shown}={shown})" in {line["name"] for line in json.loads(data)["lines"]}
