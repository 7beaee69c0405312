"""The comparison with published tables."""

import html
import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from commands import command, refused

from en.config.reading import dump
from en.config.schema import Config
from en.errors import UserError
from en.reports.tables import published, write_report

SUMMARY = {
    "model": "resnet50", "norm": "en", "norm_options": {}, "task": "classification", "dataset": "ImageNet",
    "classes": 1000, "images": 50_000, "seed": 0, "epochs": 100, "epochs_done": 100,
    "score": "top1", "best_score": 77.1, "best_epoch": 99,
    "scores": {"top1": 77.0, "top5": 93.0, "loss": 0.9},
    "params": 25_900_000, "gmacs": 4.09, "norm_gmacs": 0.05, "images_per_second": 9000.0, "resolution": 224,
    "eval_resolution": 224, "batch_size": 256, "world_size": 8, "hardware": "8 x some GPU",
}  # fmt: skip
CONFIG = {
    "model": {"name": "resnet50"}, "norm": {"name": "en"}, "data": {"root": "x"},
    "train": {"epochs": 100, "batch_size": 256}, "optim": {"lr": 0.1},
}  # fmt: skip


def scores(top1: object = 77.0, top5: object = 93.0) -> dict[str, object]:
    return {"top1": top1, "top5": top5, "loss": 0.9}


def run(folder: Path, config: dict[str, object] | None = None, **changes: object) -> str:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    (folder / "config.yaml").write_text(dump(Config.model_validate({**CONFIG, **(config or {})})))
    return str(folder)


def test_seeds_are_averaged_and_normalizers_kept_apart(tmp_path):
    runs = [run(tmp_path / f"en{seed}", seed=seed, scores=scores(top1)) for seed, top1 in enumerate([77.0, 77.5, 78.3])]
    runs += [run(tmp_path / "bn", norm="bn", scores=scores(76.0))]
    text = write_report(runs, tmp_path / "out" / "report.md")
    assert text == (tmp_path / "out" / "report.md").read_text()
    row = next(line for line in text.splitlines() if "| en |" in line and "ImageNet" in line)
    mean, std = statistics.mean([77.0, 77.5, 78.3]), statistics.stdev([77.0, 77.5, 78.3])
    assert f"| {mean:.2f} ± {std:.2f} |" in row and "| 3 |" in row and "8 x some GPU, 8 ranks" in row
    assert "| 76.00 |" in next(line for line in text.splitlines() if "| bn |" in line and "ImageNet" in line)
    assert "Not one recipe" not in text and "cannot be compared" not in text


def test_published_figures_stand_beside_with_source_and_unverified_marked(tmp_path):
    text = write_report([run(tmp_path / "a")], tmp_path / "report.md")
    for row in published().figures:
        lines = [line for line in text.splitlines() if f"| {row['top1']:,} |" in line and row["source"] in line]
        assert bool(lines) == (row["model"] == "resnet50")
        assert all(("**unverified**" in line) == (row["status"] == "unverified") for line in lines)


def test_an_unverified_figure_never_judges_a_run(tmp_path):
    text = write_report(
        [run(tmp_path / "en"), run(tmp_path / "sn", norm="sn", scores=scores(77.0))], tmp_path / "report.md"
    )
    judged = [line for line in text.splitlines() if " against " in line]
    assert len(judged) == 1 and "+0.08 against 76.92" in judged[0] and "sn" in judged[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "Fashion-MNIST", "classes": 10, "images": 10_000}, "other data (Fashion-MNIST, 10 classes"),
        ({"task": "regression"}, "another task (regression)"),
        ({"eval_resolution": 256}, "another resolution (256 pixels)"),
        ({"epochs_done": 3}, "unfinished (3 of 100 epochs)"),
    ],
)
def test_what_cannot_be_compared_is_said_in_plain_words(tmp_path, changes, words):
    text = write_report([run(tmp_path / "a", norm="sn", **changes)], tmp_path / "report.md")
    assert "cannot be compared with the published figures" in text and words in text and " against " not in text


def test_runs_of_different_recipes_or_repeated_seeds_are_pointed_out(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", {"optim": {"lr": 0.2}, "norm": {"name": "bn"}}, norm="bn")]
    assert "**Not one recipe**: the runs differ in optim.lr" in write_report(runs, tmp_path / "report.md")
    assert "**Repeated seeds**" in write_report([run(tmp_path / "c"), run(tmp_path / "d")], tmp_path / "report.md")


def test_a_network_without_published_figures_says_so(tmp_path):
    assert "No published figure is on file for resnet18" in write_report(
        [run(tmp_path / "a", model="resnet18")], tmp_path / "r.md"
    )


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


@pytest.mark.parametrize("name", NAMES)
def test_names_stand_in_their_cell_letter_for_letter(tmp_path, name):
    def rendered(cell: str) -> str:
        assert not re.search(r"(?<!&)[`*<>\[\]\\$~]|(?<!\w)_|_(?!\w)", cell), cell
        return html.unescape(cell)

    changes = {"model": name, "norm": name, "norm_options": {name: name}, "dataset": name, "hardware": name}
    folder = tmp_path / name.replace("/", "-")
    runs = [run(folder, **changes), run(tmp_path / "second", **changes)]
    lines = write_report(runs, tmp_path / "report.md").splitlines()
    (row,) = [line for line in lines if line.startswith("|") and "8 ranks" in line]
    cells = [rendered(cell.strip()) for cell in row[1:-1].split("|")]
    shown = name.replace("\n", "\\n")
    assert len(cells) == 11
    assert (cells[0], cells[1], cells[2]) == (shown, f"{shown} ({shown}={shown})", f"{shown}, 224 px")
    assert [rendered(line) for line in lines if line.startswith("No published")] == [
        f"No published figure is on file for {shown}."
    ]


DAMAGE = [
    ("summary.json", "{}", "summary.json: model: missing"),
    ("summary.json", "", "summary.json: expected JSON"),
    ("summary.json", "[" * 50_000, "summary.json: expected JSON"),
    ("summary.json", "[]", "summary.json: []: expected a section of keys and values"),
    ("summary.json", {"scores": scores("77")}, "summary.json: scores.top1='77': expected a number"),
    ("summary.json", {"scores": scores(None)}, "summary.json: scores.top1=None: expected a number"),
    ("summary.json", {"scores": scores(float("nan"))}, "summary.json: scores.top1=nan: expected a finite number"),
    ("summary.json", {"scores": scores(77.0, 1e308)}, "summary.json: scores.top5=1e+308: expected at most"),
    ("summary.json", {"params": 10**40}, "summary.json: params="),
    ("summary.json", {"model": ["resnet50"]}, "summary.json: model=['resnet50']: expected a string"),
    ("summary.json", {"norm_options": [1]}, "summary.json: norm_options=[1]: expected a section"),
    ("summary.json", {"images_per_second": {}}, "summary.json: images_per_second=a section: expected a number"),
    ("config.yaml", "", "config.yaml: expected `key: value` lines, found nothing"),
    ("config.yaml", "- 1", "config.yaml: expected `key: value` lines, found [1]"),
    ("config.yaml", "data: 3", "config.yaml: data=3: expected a section"),
    ("config.yaml", "a: 1", "config.yaml: data=None: expected a section"),
    ("config.yaml", "a: &a [*a]", "config.yaml: expected YAML: aliases"),
    ("config.yaml", "\udcff\udcfe", "config.yaml: not UTF-8 text"),
    ("config.yaml", None, "config.yaml: a folder: expected a run"),
    ("summary.json", None, "summary.json: a folder: expected a run"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGE, ids=[words for _, _, words in DAMAGE])
def test_a_damaged_run_is_refused_in_one_line_that_names_the_file_and_the_key(tmp_path, name, content, words):
    runs = [run(tmp_path / "good"), run(tmp_path / "bad", **(content if isinstance(content, dict) else {}))]
    path = tmp_path / "bad" / name
    if content is None:
        path.unlink()
        path.mkdir()
    elif isinstance(content, str):
        path.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError) as refusal:
        write_report(runs, tmp_path / "report.md")
    assert f"{tmp_path / 'bad'}/{words}" in str(refusal.value)
    assert str(refusal.value).isprintable() and not (tmp_path / "report.md").exists()


def test_a_report_that_cannot_be_read_or_written_ends_with_code_2_and_one_line(tmp_path):
    assert "nowhere" in refused(command("scripts/report.py", tmp_path / "nowhere", "--out", tmp_path / "r.md"))
    good = run(tmp_path / "good")
    for out in (tmp_path, "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(UserError, match=r"^--out .*expected a file that can be written"):
            write_report([good], Path(out))


def test_every_published_figure_has_a_source_and_a_status():
    for row in published().figures:
        assert row["source"] and row["status"] in ("published", "unverified") and 0 < row["top1"] < 100
    assert yaml.safe_dump(published().figures)


def test_a_run_with_two_recipes_is_shown_as_such(tmp_path):
    folder = Path(run(tmp_path / "en"))
    changed = {"task.flip": [0.5, 0.0], "data.workers": [1, 4], "checkpoint.keep": [3, 5], "train.epochs": [90, 100]}
    start = {"resumed_at": {"epoch": 3, "step": 7}, "changed": changed, "command": "train.py"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [{"seed": 0}, start]}))
    (line,) = [
        line for line in write_report([str(folder)], tmp_path / "report.md").splitlines() if "Two recipes" in line
    ]
    assert "task.flip=0.0 (was 0.5) after step 7 of epoch 4" in line and "train.epochs=100 (was 90)" in line
    assert "workers" not in line and "keep" not in line
    (folder / "provenance.json").write_text("")
    assert "provenance.json is damaged" in write_report([str(folder)], tmp_path / "report.md")
