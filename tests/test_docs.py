"""README.md and docs/: what they name exists, what follows from the code is fresh, and their examples run."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from commands import ROOT

import en.norm
from en import __version__
from en.config.schema import Config
from en.tasks import TASKS
from scripts.document import FENCE, PAGES, arguments, comments, compact, kinds, tree

PROSE = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
every_page = pytest.mark.parametrize("page", PROSE, ids=str)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_what_follows_from_the_code_is_fresh(page):
    text = (ROOT / page).read_text()
    assert PAGES[page](text) == text, f"{page} is stale: run python scripts/document.py"


def test_the_tree_names_every_module_and_nothing_that_does_not_exist():
    """Read as a person does, by its indents, and not by the code that has written it."""
    found = FENCE.search((ROOT / "docs" / "tree.md").read_text())
    assert found is not None
    named, folders = set(), [Path()]
    for line in found[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        assert len(line) <= 120
        names = re.split(r"\s{2,}| (?=[A-Z])", line.strip())[0].split()
        for name in names if depth or len(names) == 2 else names[:1]:
            path = folders[depth] / name
            assert (ROOT / path).exists(), path
            named.add(path)
            folders[depth + 1 :] = [path]
    modules = {path.relative_to(ROOT) for path in (ROOT / "en").rglob("*.py") if path.name != "__init__.py"}
    assert len(modules) > 100 and modules - named == set()
    scripts = {path.relative_to(ROOT) for path in (*ROOT.glob("scripts/*"), *ROOT.glob("experiments/*"))}
    assert {path for path in scripts - named if path.name[0] != "_"} == set()


@every_page
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith("http"):
            name, _, anchor = unquote(target).partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path), f"{page}: {target}"


@every_page
def test_every_command_names_scripts_and_configurations_that_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"(?<![\w/.])(?:scripts|configs|tests|experiments)/[\w/]+\.\w+", text):
        assert (ROOT / name).is_file(), f"{page}: {name}"
    commands = set(re.findall(r"\ben-(?:train|eval|[a-z]{5,})\b", text))
    named = {line.split(" = ")[0] for line in (ROOT / "pyproject.toml").read_text().splitlines()}
    assert commands <= named


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings(
    "ignore:.*Converting a tensor with requires_grad=True to a scalar:UserWarning",  # by export
    "ignore:.*LeafSpec:FutureWarning",  # by Lightning and the exporter to ONNX
    "ignore::DeprecationWarning",
)
@pytest.mark.parametrize("page", [page for page in PROSE if examples(page)], ids=str)
def test_the_examples_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for code in examples(page):
        exec(compile(code, str(page), "exec"), names)


def test_the_page_of_the_public_api_names_all_of_en_norm():
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in en.norm.__all__ if not re.search(rf"\b{name}$", text, re.MULTILINE)] == []


def sections_of(keys: type) -> list[type]:
    """A section of keys, and those within it."""
    inner = [kind for field in keys.model_fields.values() for kind in kinds(field.annotation)]
    return [keys, *(each for kind in inner for each in sections_of(kind))]


def test_every_key_and_every_option_is_described():
    sections = [*sections_of(Config), *TASKS.values()]
    fields = [(kind, name) for kind in sections for name, field in kind.model_fields.items()
              if not kinds(field.annotation) and name not in ("name", "task")]  # fmt: skip
    undescribed = [f"{kind.__name__}.{name}" for kind, name in fields if not comments(kind).get(name)]
    for norm, kind in en.norm.NORMALIZERS.items():
        undescribed += [f"{norm}.{name}" for name in en.norm.norm_options(norm) if not arguments(kind).get(name)]
    assert undescribed == []


def test_a_picture_is_compacted_to_the_same_shapes():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="10.123456pt"><g>\n'
        '<path d="M 1.234567 2.000001 \nL 3 4" style="fill: none"/><path d="M 0 0" style="fill: none"/>'
        "<text>v1.23456</text></g></svg>"
    )
    got = compact(svg)
    assert 'd="M 1.2 2 L 3 4"' in got and got.count("fill: none") == 1 and got.count('class="s0"') == 2
    assert ">v1.23456<" in got and len((ROOT / "docs" / "ratios.svg").read_bytes()) < 100_000


def test_the_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper) and "2003.08761" in paper["url"]


def test_a_file_of_the_tree_without_words_of_its_own_is_noticed():
    assert [line for line in tree().splitlines() if not re.search(r"\S {1,}\S", line)] == []
