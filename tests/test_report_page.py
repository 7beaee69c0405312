"""The page of a report in a browser."""

import io
import json
import re
import shutil
import subprocess
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from PIL import Image
from report_runs import logged, looked_at

from en.data.palette import varied
from en.reports.files import write_report
from en.runs.by_class import ByClass, Entries, Findings
from en.tasks.drawing import draw_maps

SCRIPT_OF_UPLOT = re.compile(r"leeoniya/uPlot \((v[\d.]+)\)")
CLASSES = [f"class {number}" for number in range(9)] + ["<b>bold</b> |"]
NAME = "<script>document.title = 'taken'</script><img src=x onerror=console.error(1)>"
# Of every text of the page and its pictures: how it stands out from what is behind it, by WCAG 2's formula.
CONTRASTS = """(() => {
  const channel = part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(part => channel(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("p, td, th, h1, h2, caption, figcaption, svg text")].map(element => {
    const style = getComputedStyle(element), ink = light(element.matches("text") ? style.fill : style.color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
})()"""


def jpeg_of(draws):
    """A picture of maps of noise."""
    image, maps = draws.integers(0, 256, (3, 30, 40), np.uint8), draws.integers(0, 10, (2, 30, 40), np.uint8)
    file = io.BytesIO()
    Image.fromarray(draw_maps(image, *maps, CLASSES, varied(10))).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page of nine runs: three normalizers, one of them with a name that attacks the page, one run unfinished."""
    root = tmp_path_factory.mktemp("page")
    for norm, top1 in (("bn", 70.0), ("en", 9.5), ("in", 60.0)):
        for seed in range(3):
            rows = [
                {"epoch": epoch, "train_loss": 1 / epoch, "images_per_second": 100.0, "seconds": 60.0,
                 "top1": top1 + seed * epoch / 7, "top5": 90.0, "loss": 0.5}
                for epoch in (1, 2, 3)
            ]  # fmt: skip
            logged(root / "runs" / f"{norm}-s{seed}", norm, seed, rows[: 2 if (norm, seed) == ("in", 2) else 3], 3)
            if norm == "en":
                path = root / "runs" / f"{norm}-s{seed}" / "summary.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "norm_options": {"activation": NAME}}))
    draws = np.random.default_rng(0)
    for seed in range(3):
        counts = {"confusion": Entries.of(draws.integers(1, 90, (10, 10)) + np.diag([200] * 9 + [0]))}
        found = ByClass(epoch=3, task="classification", counted="images", classes=CLASSES, counts=counts)
        Findings(found, {5: jpeg_of(draws)}).write(root / "runs" / f"bn-s{seed}" / "evaluation" / "last")
    for seed in range(3):
        ratios = {"stem": {"bn": 0.5, "in": 0.3, "ln": 0.2}, "top": {"bn": 0.4 + seed / 100, "in": 0.0, "ln": 0.6}}
        rows = [json.dumps({"epoch": epoch, "ratios": ratios}) for epoch in (1, 2, 3)]
        (root / "runs" / f"en-s{seed}" / "ratios.jsonl").write_text("\n".join(rows) + "\n")
    (looked_at(root / "runs" / "bn-s0", **{"trained to": "epoch 3"}) / "layers.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='9'/>"
    )
    write_report([str(root / "runs")], root / "out")
    alone = root / "alone" / "report.html"
    alone.parent.mkdir()
    return (root / "out" / "report.html").rename(alone)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_loads_alone_without_an_error_and_scrolls_its_tables_only(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert browser.complaints == []
    assert [address for address in browser.addresses if not address.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    boxes = browser.evaluate("[...document.querySelectorAll('.box')].map(box => [box.scrollWidth, box.clientWidth])")
    assert len(boxes) == 10 and all(inner <= width for _, inner in boxes)
    assert any(whole > inner for whole, inner in boxes) or width > 400
    assert browser.evaluate("document.title") == "Normalizers compared on clothes"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(browser, page, scheme):
    browser.open(page, 1280, scheme)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 19, 21)"}[scheme]
    contrasts = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 100 and min(contrasts) > 7


def test_every_picture_is_there_and_said_in_words(browser, page):
    browser.open(page, 1280)
    pictures = browser.evaluate(
        "[...document.querySelectorAll('figure')].map(figure => { const svg = figure.querySelector('svg'), img = "
        "figure.querySelector('img'), chart = figure.querySelector('.chart .u-wrap'); const box = (chart || svg || "
        "img).getBoundingClientRect(), role = (chart || svg || img).getAttribute('role') || 'img'; return "
        "[box.width > 200, role, svg ? document.getElementById((chart || svg).getAttribute('aria-labelledby'))"
        ".textContent : img.alt, img ? img.naturalWidth : svg.querySelectorAll('path').length]; })"
    )
    assert all(wide and role == "img" and parts > 5 for wide, role, _, parts in pictures)
    score, loss, compute, by_class, confusion, sample, by_layer, by_epoch, ratios = (
        words for _, _, words, _ in pictures
    )
    assert by_class.startswith("Top-1 % of each class, mean over seeds") and "from <b>bold</b> | to class" in by_class
    assert confusion.startswith("Confusion of bn: rows are classes") and "class 5 for class 3" in confusion
    assert "sample 5 of the evaluation set: image, truth, prediction" in sample
    assert browser.evaluate("document.querySelector('.wide img').getBoundingClientRect().width") > 1000
    assert "bn: 1 after epoch 1, 0.3333 after epoch 3" in loss and NAME in loss
    assert "Top-1 % after each epoch" in score and "at 4.1 GMACs" in compute and ratios.startswith("Ratios of ")
    assert "in left out in 1 of 2 layers" in by_layer and "over training" in by_epoch
    assert browser.evaluate("(ids => ids.length === new Set(ids).size)([...document.querySelectorAll('[id]')]"
                            ".map(element => element.id))")  # fmt: skip


def legend(browser: Browser, figure: str) -> list[str]:
    """The lines of a chart's legend that are seen."""
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll('#{figure} .u-series')].filter(row => row.offsetHeight)"
        ".map(row => row.textContent.trim())"
    )
    return found


@pytest.mark.parametrize("width", [400, 1280])
def test_a_chart_tells_the_values_under_the_mouse_and_the_last_ones_without_it(browser, page, width):
    browser.open(page, width)
    rest = legend(browser, "loss")
    assert rest[0] == "epoch3" and rest[1].startswith("bn") and rest[1].endswith("0.3333 (n 3)") and len(rest) == 5
    browser.hover("#loss .u-over", 0.5)
    moved = legend(browser, "loss")
    assert moved[0] == "epoch2" and moved[1].endswith("0.5 (n 3)") and browser.complaints == []
    browser.hover("h1", 0.5)
    assert legend(browser, "loss") == rest
    assert legend(browser, "score")[1] == "bn70.43 ± 0.43 (n 3)"


def test_each_seed_is_drawn_on_demand(browser, page):
    browser.open(page, 1280)
    before = legend(browser, "score")
    browser.click("#score input")
    seen = legend(browser, "score")
    assert len(seen) == len(before) + 8 and any(line.startswith("bn, seed 2") for line in seen)
    browser.click("#score input")
    assert legend(browser, "score") == before and browser.complaints == []


@pytest.mark.parametrize(("scheme", "ink"), [("light", "#1a1a1b"), ("dark", "#e6e6e8")])
def test_charts_are_drawn_in_the_ink_of_the_scheme_and_stay_within_the_page(browser, page, scheme, ink):
    browser.open(page, 400, scheme)
    assert browser.evaluate("charts.map(u => u.axes[0].stroke(u, 0))") == [ink] * 6
    assert all(wide <= 400 for wide in browser.evaluate("charts.map(u => u.root.getBoundingClientRect().right)"))
    assert browser.evaluate("[...document.querySelectorAll('figure.drawn > svg')].every(e => !e.clientWidth)")


def test_on_paper_figures_stand_in_the_place_of_charts_and_the_recipe_is_unfolded(browser, page):
    browser.open(page, 718, media="print")
    assert browser.evaluate("[...document.querySelectorAll('figure.drawn > svg')].every(e => e.clientWidth > 200)")
    assert browser.evaluate("[...document.querySelectorAll('.chart')].every(e => !e.clientWidth)")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelector('#recipe-table').clientHeight") > 100


def test_the_page_is_small_and_its_tables_fit_a_laptop(browser, page):
    assert page.stat().st_size < 2_000_000
    browser.open(page, 1280)
    boxes = browser.evaluate("[...document.querySelectorAll('.box')].map(box => [box.scrollWidth, box.clientWidth])")
    assert all(whole <= inner for whole, inner in boxes)


def test_the_page_brings_the_licence_of_what_draws_its_charts(page):
    text = page.read_text()
    assert (files("en.reports") / "uplot" / "LICENSE").read_text() in text and SCRIPT_OF_UPLOT.search(text)


def test_the_plotting_library_is_the_registrys_package_letter_for_letter(tmp_path):
    folder = files("en.reports") / "uplot"
    version = json.loads((folder / "package.json").read_text())["version"]
    assert version in SCRIPT_OF_UPLOT.search((folder / "uPlot.iife.min.js").read_text())[1]
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: the registry's package cannot be fetched")
    pack = [npm, "pack", "--silent", f"uplot@{version}"]
    done = subprocess.run(pack, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"no network to the registry: {done.stderr.strip()[-200:]}")
    with tarfile.open(tmp_path / done.stdout.strip()) as package:
        held = {Path(one.name).name: package.extractfile(one).read() for one in package.getmembers() if one.isfile()}
    own = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    assert own.keys() == {"LICENSE", "package.json", "uPlot.iife.min.js", "uPlot.min.css"}
    assert {name: held[name] for name in own} == own


def column(browser: Browser, table: str, at: int) -> list[str]:
    """The texts of a column, from the top, as the page shows them."""
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll('#{table}-table tbody tr')].map(row => row.cells[{at}].textContent.trim())"
    )
    return found


@pytest.mark.parametrize("width", [390, 1280])
def test_a_click_on_a_heading_sorts_by_number_or_word_and_a_second_one_the_other_way(browser, page, width):
    browser.open(page, width)
    heads = browser.evaluate("[...document.querySelectorAll('#measured-table thead th')].map(head => head.textContent)")
    at = heads.index("top-1 %")
    values = [float(text.split()[0]) for text in column(browser, "measured", at)]
    assert values != sorted(values)
    for direction in ("ascending", "descending"):
        browser.click(f"#measured-table th:nth-child({at + 1}) button")
        found = [float(text.split()[0]) for text in column(browser, "measured", at)]
        assert found == sorted(values, reverse=direction == "descending")
        sorts = browser.evaluate("[...document.querySelectorAll('[aria-sort]')].map(e => e.ariaSort)")
        assert sorts == [direction]
    at = heads.index("top-1 95 % interval")
    for _ in range(2):  # a dash is no number: it stays at the end
        browser.click(f"#measured-table th:nth-child({at + 1}) button")
        assert column(browser, "measured", at)[-1] == "-"
    browser.click("#measured-table th:first-child button")
    names = column(browser, "measured", 0)
    assert [name.split()[0] for name in names] == ["bn", "en", "in", "in,"] and browser.complaints == []


def test_classes_stand_from_the_worst_to_the_best_with_names_letter_for_letter(browser, page):
    browser.open(page, 1280)
    names, scores = column(browser, "by_class", 0), column(browser, "by_class", 3)
    assert names[0] == CLASSES[-1] and set(names) == {*CLASSES}
    assert [float(text.split()[0]) for text in scores] == sorted(float(text.split()[0]) for text in scores)
    assert len(column(browser, "confused", 0)) == 10 and column(browser, "classes", 3) == ["10 of 10"]


def test_headings_are_ordered_and_boxes_can_be_reached_by_key(browser, page):
    browser.open(page, 390)
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(head => head.tagName)")
    assert levels[0] == "H1" and set(levels[1:]) == {"H2"}
    assert browser.evaluate("[...document.querySelectorAll('.box')].every(box => box.tabIndex === 0 && "
                            "document.getElementById(box.getAttribute('aria-labelledby')).textContent)")  # fmt: skip


def test_the_page_prints_dark_on_white_within_the_paper(browser, page):
    browser.open(page, 718, "dark", media="print")  # A4 without margins
    assert browser.evaluate("document.documentElement.scrollWidth") <= 718
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(browser.evaluate(CONTRASTS)) > 7
