"""What a report says of runs, of published figures and of what went wrong."""

import hashlib
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, refused
from report_runs import LINE, logged, looked_at, report, run, scores, table

from en.commands.report import main
from en.errors import UserError
from en.norm.registry import AS_PUBLISHED, norm_defaults
from en.reports.files import write_report
from en.reports.ratios.files import FACTS


def test_seeds_are_averaged_and_normalizers_kept_apart(tmp_path):
    runs = [
        run(tmp_path / f"en{seed}", seed=seed, norm_options=AS_PUBLISHED["en"], scores=scores(top1))
        for seed, top1 in enumerate([77.0, 77.5, 78.3])
    ]
    runs += [run(tmp_path / "bn", norm="bn", scores=scores(76.0))]
    text = report(runs, tmp_path / "out")
    names = ("en (min_pixels=1, gate_pixels=1)", "bn")
    en, bn = (next(line for line in text.splitlines() if line.startswith(f"| {name} |")) for name in names)
    mean, std = statistics.mean([77.0, 77.5, 78.3]), statistics.stdev([77.0, 77.5, 78.3])
    assert f"| en (min_pixels=1, gate_pixels=1) | 3 | {mean:.2f} ± {std:.2f} |" in en
    assert "hardware 8 x some GPU, 8 ranks" in text
    assert "| bn | 1 | 76.00 | - |" in bn
    assert "Not one recipe" not in text and "not comparable" not in text


def test_defaults_of_a_normalizer_are_not_shown_and_runs_under_other_defaults_are_told_apart(tmp_path):
    then, now = norm_defaults("en") | {"gate_pixels": 1}, norm_defaults("en")
    assert then != now
    runs = [run(tmp_path / f"{name}{seed}", seed=seed, norm_options=options, scores=scores(70.0 + seed))
            for name, options in {"then": then, "now": now}.items() for seed in range(3)]  # fmt: skip
    text = report(runs, tmp_path / "out")
    assert "| en | 3 | 71.00" in text and "| en (gate_pixels=1) | 3 | 71.00" in text


def test_runs_of_different_recipes_are_pointed_out_and_marked(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", {"optim": {"lr": 0.2}, "norm": {"name": "bn"}}, norm="bn")]
    assert "**Not one recipe**: the runs differ in optim.lr" in report(runs, tmp_path / "out")
    assert [row["variant"] for row in table(tmp_path / "out", "measured")] == ["en", "bn, optim.lr=0.2"]


def test_a_run_of_a_seed_that_was_counted_before_is_said_and_not_counted(tmp_path):
    runs = [run(tmp_path / name, scores=scores(top1)) for name, top1 in (("c", 70.0), ("d", 80.0))]
    text = report([*runs, run(tmp_path / "e", seed=1, scores=scores(72.0))], tmp_path / "out")
    assert f"**Repeated seeds**: {runs[1]} are" in text
    (row,) = table(tmp_path / "out", "measured")
    assert (float(row["top-1 %"]), row["n"]) == (71.0, "2")


def test_keys_that_change_no_step_do_not_keep_seeds_apart(tmp_path):
    runs = [
        run(tmp_path / "a", {"resume": "auto", "run_dir": "x", "checkpoint": {"keep": 9}}, seed=0),
        run(tmp_path / "b", {"data": {"root": "y", "workers": 3}}, seed=1, hardware="8 x another GPU"),
    ]
    assert "Not one recipe" not in report(runs, tmp_path / "out")
    (row,) = table(tmp_path / "out", "measured")
    assert row["n"] == "2" and row["hardware"] == "8 x some GPU, 8 ranks; 8 x another GPU, 8 ranks"


def rows(norm: str, seed: int, epochs: int = 4) -> list[dict[str, float]]:
    """A log as training leaves it, other numbers for each norm and seed."""
    shift = {"bn": 0.0, "en": 1.5, "in": -9.0}[norm] + 0.37 * seed - (0.11 if norm == "bn" else 0.2) * seed * seed
    return [
        {"epoch": epoch, "train_loss": 2 / epoch - shift / 50, "images_per_second": 800 + 10 * shift + epoch,
         "seconds": 90.0 + seed, "top1": 60 + 5 * epoch + shift + (seed * epoch % 3) / 7, "top5": 90 + epoch + seed / 9,
         "loss": 1 / epoch}
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    """A folder of runs as a suite leaves it: one failed at once, one has no folder, one stopped, one is larger, one has
    no twin of its seed."""
    root = tmp_path / "suite"
    for norm, seed in [("bn", 0), ("bn", 1), ("bn", 2), ("en", 0), ("en", 1), ("en", 2), ("in", 7)]:
        logged(root / f"{norm}-s{seed}", norm, seed, rows(norm, seed), 4)
    logged(root / "large-s0", "en", 0, rows("en", 0), 4, side=96)
    logged(root / "en-s3", "en", 3, rows("en", 3, 2), 4)
    logged(root / "en-s4", "en", 4, [], 4)
    (root / "en-s4.log").write_text("shufflenet\nerror: the loss of step 3 is not finite\n")
    (root / "en-s5.log").write_text("error: data.root=x: no such folder\n")
    (root / "notes.log").write_text("error: of something else")
    return root


def of_logs(root: Path, norm: str, key: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[float]:
    """A number of the last rows of a normalizer's logs."""
    logs = [(root / f"{norm}-s{seed}" / "log.jsonl").read_text().splitlines() for seed in seeds]
    return [json.loads(lines[-1])[key] for lines in logs]


def test_every_number_is_that_of_the_logs(suite, tmp_path):
    report([str(suite)], tmp_path / "out")
    for row in table(tmp_path / "out", "measured"):
        if row["variant"] in ("bn", "en"):
            for heading, key in (("top-1", "top1"), ("top-5", "top5")):
                values = of_logs(suite, row["variant"], key)
                mean, sd = statistics.fmean(values), statistics.stdev(values)
                half = 4.302653 * sd / math.sqrt(3)
                found = [row[f"{heading} %"], row[f"{heading} % sd"]]
                found += [row[f"{heading} 95 % interval {end}"] for end in ("low", "high")]
                assert [*map(float, found)] == pytest.approx([mean, sd, mean - half, mean + half], rel=1e-6)
    (pair,) = [row for row in table(tmp_path / "out", "differences") if row["variants"] == "en - bn"]
    gaps = [en - bn for en, bn in zip(of_logs(suite, "en", "top1"), of_logs(suite, "bn", "top1"), strict=True)]
    half = 4.302653 * statistics.stdev(gaps) / math.sqrt(3)
    low, high = (float(pair[f"top-1 95 % interval {end}"]) for end in ("low", "high"))
    assert (low, high) == pytest.approx((statistics.fmean(gaps) - half, statistics.fmean(gaps) + half), rel=1e-6)
    assert pair["method"] == "paired over 3 seeds" and float(pair["top-1 %"]) == pytest.approx(statistics.fmean(gaps))
    (cost,) = [row for row in table(tmp_path / "out", "cost") if row["variant"] == "en"]
    speeds = [of_logs(suite, norm, "images_per_second") for norm in ("en", "bn")]
    faster = math.prod(speeds[0]) ** (1 / 3) / math.prod(speeds[1]) ** (1 / 3)
    wanted = [statistics.fmean(speeds[0]), statistics.fmean(gaps), 20.0, 100 * (4.14 / 4.10 - 1), 100 * (faster - 1)]
    keys = ["images/s", "± top-1 %", "± parameters %", "± GMACs %", "± images/s %"]
    assert [float(cost[key]) for key in keys] == pytest.approx(wanted)
    (line,) = [row for row in table(tmp_path / "out", "runs") if row["run"].endswith("en-s1")]
    assert float(line["hours"]) == pytest.approx(4 * 91 / 3600) and line["command"] == f"{LINE} seed=1"
    assert (line["commit"], line["begun"], line["hardware"]) == (
        "abababababab +",
        "2026-11-24T12:00:00+0000",
        "some CPU",
    )
    assert line["configuration differs from most runs in"] == "nothing"


def test_a_curve_is_the_mean_over_the_seeds_of_each_epoch(suite, tmp_path):
    report([str(suite)], tmp_path / "out")
    curves = json.loads((tmp_path / "out" / "report.json").read_text())["curves"]
    for name, key in (("loss", "train_loss"), ("score", "top1")):
        (points,) = [line["points"] for line in curves[name] if line["variant"] == "en"]
        (seeds,) = [line["seeds"] for line in curves[name] if line["variant"] == "en"]
        assert seeds == {str(seed): {str(row["epoch"]): row[key] for row in rows("en", seed)} for seed in range(3)}
        for point in points:
            values = [rows("en", seed)[point["epoch"] - 1][key] for seed in range(3)]
            found = (point["mean"], point["sd"], point["n"])
            assert found == pytest.approx((statistics.fmean(values), statistics.stdev(values), 3))
        assert [point["epoch"] for point in points] == [1, 2, 3, 4]


def test_a_run_that_failed_stopped_never_began_or_is_larger_is_shown_as_such(suite, tmp_path):
    text = report([str(suite)], tmp_path / "out")
    assert "11 runs: 8 finished, 1 unfinished, 2 without a finished epoch." in text
    for name, words in (
        ("en-s3", "unfinished (2 of 4 epochs)"),
        ("en-s4", "no finished epoch; error: the loss of step 3 is not finite"),
        ("en-s5", "never began; error: data.root=x: no such folder"),
    ):
        assert f"**Not finished**: {suite / name}: {words}." in text
        assert f"| {suite / name} | **{words}** |" in text
    assert "notes" not in text
    variants = {row["variant"]: row for row in table(tmp_path / "out", "measured")}
    assert {*variants} == {"bn", "en", "in", "en, resolution=96 px", "en, unfinished (2 of 4 epochs)"}
    assert variants["en, unfinished (2 of 4 epochs)"]["epochs"] == "2" and variants["en"]["n"] == "3"
    assert (
        variants["in"]["top-1 95 % interval low"] == "" and "**Not one recipe**: the runs differ in data.reso" in text
    )
    pairs = {row["variants"]: row for row in table(tmp_path / "out", "differences")}
    assert not [name for name in pairs if "unfinished" in name] and "Not compared, because unfinished: en, unf" in text
    assert pairs["bn - in"]["method"] == "no test: 3 and 1 runs, 0 of one seed" and pairs["bn - in"]["p"] == ""
    assert pairs["en - en, resolution=96 px"]["differ in"] == "resolution"


def test_several_comparisons_are_corrected_by_holm_and_said_in_words(tmp_path):
    tops = {"bn": [70.0, 71.0, 70.4], "en": [75.0, 76.1, 75.5], "in": [70.2, 70.9, 70.1]}
    runs = [
        run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, scores=scores(top1))
        for norm, values in tops.items()
        for seed, top1 in enumerate(values)
    ]
    text = report(runs, tmp_path / "out")
    found = [(float(row["p"]), float(row["p corrected"])) for row in table(tmp_path / "out", "differences")]
    ordered = sorted(found)
    assert len(found) == 3
    assert [corrected for _, corrected in ordered] == pytest.approx(
        [3 * ordered[0][0], max(3 * ordered[0][0], 2 * ordered[1][0]), max(2 * ordered[1][0], ordered[2][0])]
    )
    assert "Holm's for the 3 comparisons of this table" in text
    assert "top-1 of en is higher than that of bn by 5.07 % (95 % interval " in text
    assert "Whether 1 pair differs in top-1 is not shown by these runs." in text


def test_many_variants_are_each_compared_with_the_first(tmp_path):
    runs = [
        run(tmp_path / f"{width}", norm_options={"hidden": width}, scores=scores(70.0 + width)) for width in range(9)
    ]
    text = report(runs, tmp_path / "out")
    assert [row["variants"] for row in table(tmp_path / "out", "differences")] == [
        f"en (hidden={width}) - en (hidden=0)" for width in range(8, 0, -1)
    ]
    assert "Each variant is compared with en (hidden=0)." in text


def test_variants_scored_on_other_images_stand_in_tables_of_their_own(suite, tmp_path):
    report([str(suite), run(tmp_path / "other"), run(tmp_path / "more", norm="bn")], tmp_path / "out")
    names = [[row["variants"] for row in table(tmp_path / "out", f"differences_{at}")] for at in (1, 2)]
    assert "en - bn" in names[0] and not [name for name in names[0] if "ImageNet" in name]
    assert len(names[1]) == 1 and names[1][0].count("data=ImageNet (1000 classes, 50,000 images)") == 2
    assert (tmp_path / "out" / "figures" / "compute_2.pdf").read_bytes().startswith(b"%PDF")


def test_a_folder_of_runs_means_its_runs_each_once_in_the_order_of_their_numbers(tmp_path):
    runs = [run(tmp_path / "suite" / f"hidden{width}", norm_options={"hidden": width}) for width in (100, 20, 3)]
    report([str(tmp_path), runs[0]], tmp_path / "out")
    assert [row["run"] for row in table(tmp_path / "out", "runs")] == runs[::-1]


def test_logs_with_torn_lines_and_numbers_that_are_none_cost_no_more_than_those(tmp_path, capsys):
    path = Path(logged(tmp_path / "a", "en", 0, rows("en", 0), 4))
    with (path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 3, "top1": NaN, "train_loss": 1e400}\n{"epoch": 4, "top1": 88.0}\n{"epoch"')
    report([str(path)], tmp_path / "out")
    curves = json.loads((tmp_path / "out" / "report.json").read_text())["curves"]
    assert [point["epoch"] for point in curves["score"][0]["points"]] == [1, 2, 4]
    assert curves["score"][0]["points"][-1]["mean"] == 88.0
    assert "log.jsonl:7: not a whole row: left out" in capsys.readouterr().err


def test_the_ratios_of_runs_are_part_of_the_page_pictures_with_their_words(tmp_path, capsys):
    path = Path(run(tmp_path / "en"))
    looked_at(path)
    (path / "ratios" / "by_layer.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (path / "ratios" / "by_layer.txt").write_text('bn leads "below"\n')
    lines = ["position,layer,normalizer,mean,sd", "1,conv1,bn,0.25,0.1", "1,conv1,in,0.75,", "2,<b>,bn,0.5,0.2"]
    (path / "ratios" / "layers.csv").write_text("\n".join(lines))
    damaged = Path(run(tmp_path / "sn", norm="sn"))
    looked_at(damaged)
    (damaged / "ratios" / "layers.csv").write_text("layer,normalizer\nconv1,bn\n")
    text = report([str(path), str(damaged)], tmp_path / "out")
    assert f"Mean ratios of {path} after epoch 100 by layer" in text.replace("&#95;", "_")
    assert "standard deviation over the 50,000 images of val of ImageNet" in text
    found = [[row[key] for key in ("layer", "bn", "bn sd", "in")] for row in table(tmp_path / "out", "ratios_1")]
    assert found == [["conv1", "0.25", "0.1", "0.75"], ["<b>", "0.5", "0.2", ""]]
    assert (
        "layers.csv: not a table of ratios (line 2: mean: missing: expected a value (and 1 more))"
        in capsys.readouterr().err
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 1 and 'src="data:image/svg+xml;base64,' in page
    assert 'alt="bn leads &#34;below&#34;"' in page


NOT_NOW = {
    "of an earlier epoch": {"trained to": "epoch 1"},
    "within an epoch": {"trained to": "step 3 of epoch 100"},
    "of another last.pt": {"sha256": "cd" * 32},
    "of what is best.pt now": {"trained to": "epoch 99", "sha256": "ef" * 32},
    "of another best.pt": {"trained to": "epoch 99", "checkpoint": "best.pt"},
}


@pytest.mark.parametrize("facts", NOT_NOW.values(), ids=NOT_NOW)
def test_ratios_of_another_state_of_a_run_are_left_out_with_a_warning(tmp_path, capsys, facts):
    path = Path(run(tmp_path / "en"))
    for name in ("last.pt", "best.pt"):
        (path / name).write_bytes(name.encode())
    (path / "best.pt.sha256").write_text(f"{'ef' * 32}  best.pt\n")
    digest = hashlib.sha256(b"last.pt").hexdigest()
    (looked_at(path, sha256=digest) / "layers.svg").write_text("<svg/>")
    assert f"{path.name} after epoch 100: layers" in report([str(path)], tmp_path / "out")
    assert capsys.readouterr().err == ""
    looked_at(path, **{"sha256": digest, **facts})
    assert "Ratios" not in report([str(path)], tmp_path / "out")
    words = f"expected those of {facts.get('checkpoint', 'last.pt')} as it is now: left out; scripts/ratios.py takes"
    assert words in capsys.readouterr().err


def test_ratios_of_the_best_epoch_are_named_as_such_and_unknown_ones_left_out(tmp_path, capsys):
    path = Path(run(tmp_path / "en"))
    of_best = {"sha256": "ef" * 32, "trained to": "epoch 99", "checkpoint": f"{path}/best.pt"}
    (looked_at(path, **of_best) / "layers.svg").write_text("<svg/>")
    assert f"{path.name} after epoch 99 (best.pt): layers" in report([str(path)], tmp_path / "out")
    assert capsys.readouterr().err == ""
    for spoil in (lambda file: file.write_text('{"sha'), lambda file: file.write_text('["sha256"]'), Path.unlink):
        spoil(path / "ratios" / FACTS)
        assert "Ratios" not in report([str(path)], tmp_path / "out")
        assert "facts.json: expected it to say which checkpoint the ratios are of" in capsys.readouterr().err
    looked_at(path)
    (path / "summary.json").unlink()
    assert "Ratios" not in report([str(path)], tmp_path / "out")


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_report_of_fewer_things_leaves_no_file_of_an_earlier_one_and_touches_no_other(suite, tmp_path, capsys):
    out, alone = tmp_path / "out", [str(suite / "bn-s0")]
    report([str(suite), run(tmp_path / "other")], out)
    before = contents(out)
    mine = {"notes.md": b"mine", "tables/mine.csv": b"mine", "figures/compute.png": b"mine"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    changed = out / "tables" / "differences_1.tex"
    changed.write_text(changed.read_text() + "% mine")
    report(alone, out)
    assert capsys.readouterr().err == f"warning: {changed}: of an earlier report, and changed since: left as it is\n"
    report(alone, tmp_path / "fresh")
    fresh, edited = contents(tmp_path / "fresh"), {"tables/differences_1.tex": changed.read_bytes()}
    assert len(before.keys() - fresh.keys()) > 5 and contents(out) == {**fresh, **mine, **edited}
    summed = subprocess.run(["sha256sum", "-c", "--quiet", "files.sha256"], cwd=out, check=False)
    assert summed.returncode == 0
    report([str(suite / "en-s4")], out)  # without a result, and so without figures
    assert not list((out / "figures").glob("*.svg")) and (out / "figures" / "compute.png").exists()
    (tmp_path / "bare").mkdir()
    report(alone, tmp_path / "bare")
    report([str(suite / "en-s4")], tmp_path / "bare")
    assert not (tmp_path / "bare" / "figures").exists()


def test_a_list_of_files_that_is_damaged_or_made_to_do_harm_removes_nothing_else(tmp_path, capsys):
    alone, out = run(tmp_path / "en"), tmp_path / "out"
    names = [
        "../victim",
        "tables/../../victim",
        "tables/../report.md",
        str(tmp_path / "victim"),
        "mine",
        "tables/x.csv\0",
    ]
    for place in (tmp_path / "victim", out / "mine"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    (out / "files.sha256").write_bytes("".join(f"{digest}  {name}\n" for name in names).encode() + b"\xff\n\n  \n")
    report([alone], out)
    assert (tmp_path / "victim").exists() and (out / "mine").exists() and capsys.readouterr().err == ""


def test_what_may_be_of_a_report_without_a_list_is_left_with_a_warning(suite, tmp_path, capsys):
    out = tmp_path / "out"
    report([str(suite)], out)
    (out / "files.sha256").unlink()
    before = contents(out).keys()
    report([str(suite / "bn-s0")], out)
    assert contents(out).keys() == before | {"files.sha256"}
    assert "files that may be of an earlier report are left, such as " in capsys.readouterr().err


BROKEN = {
    "1,conv1": "line 3: expected as many fields as headings",
    "1,conv1,in,0.5,0.1,7": "line 3: expected as many fields as headings",
    "1,conv1,in,nan,0.1": "line 3: mean='nan': expected a finite number",
    "1,conv1,in,0.5,inf": "line 3: sd='inf': expected a finite number",
    "1,conv1,in,1.5,0.1": "line 3: mean='1.5': expected at most 1",
    "1,conv1,in,half,0.1": "line 3: mean='half': expected a number",
    "1,conv1,xn,0.5,0.1": "line 3: normalizer='xn': expected one of bn, in, ln, gn",
    "1,conv1,layer,0.5,0.1": "line 3: normalizer='layer': expected",
    "1,conv1,bn,0.5,0.1": "line 3: conv1, bn: expected once",
    '1,"conv1,in,0.5,0.1': "unexpected end of data",
}


def test_rows_of_ratios_that_are_none_are_named_by_their_line_and_cost_their_table_alone(tmp_path, capsys):
    paths = [Path(run(tmp_path / f"en{number}", seed=number)) for number in range(len(BROKEN))]
    for path, row in zip(paths, BROKEN, strict=True):
        looked_at(path)
        (path / "ratios" / "layers.csv").write_text(f"position,layer,normalizer,mean,sd\n1,conv1,bn,0.5,\n{row}\n")
    report(map(str, paths), tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    for path, words in zip(paths, BROKEN.values(), strict=True):
        (line,) = [line for line in said if f"{path}/" in line]
        assert words in line and line.startswith("warning: ") and line.endswith("left out")
    assert not list((tmp_path / "out" / "tables").glob("ratios_*"))


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
        write_report(runs, tmp_path / "out")
    assert f"{tmp_path / 'bad'}/{words}" in str(refusal.value)
    assert str(refusal.value).isprintable() and not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_read_or_written_ends_with_code_2_and_one_line(tmp_path):
    assert "nowhere" in refused(command("scripts/report.py", tmp_path / "nowhere", "--out", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no run: expected a run folder, or a folder of run folders"):
        write_report([str(tmp_path / "empty")], tmp_path / "out")
    good = run(tmp_path / "good")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(UserError, match=r"^--out .*expected a folder that can be written"):
            write_report([good], Path(out))
    assert (tmp_path / "file").read_text() == "mine"


def show(monkeypatch, width: int, *arguments: object) -> None:
    """The command in this process, in a terminal of a width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    main()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_in_a_terminal_fits_its_width_without_cutting_a_number(suite, tmp_path, capsys, monkeypatch, width):
    show(monkeypatch, width, suite, "--out", tmp_path / "out")
    text = capsys.readouterr().out
    *lines, last = text.splitlines()
    assert max(map(len, lines)) <= width and last == str(tmp_path / "out" / "report.html")
    values = of_logs(suite, "en", "top1")
    assert f" {statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} " in text or width == 40
    assert "variant" in text and ("hardware" in text) and ("in the report also: " in text) == (width < 200)


def test_without_the_extra_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith("en.reports")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit, match="2"):
        show(monkeypatch, 80, tmp_path, "--out", tmp_path / "out")
    assert "error: jinja2: not installed: expected exemplar-norm[train,report]" in capsys.readouterr().err


def test_a_run_with_two_recipes_is_shown_as_such(tmp_path):
    folder = Path(run(tmp_path / "en"))
    changed = {"task.flip": [0.5, 0.0], "data.workers": [1, 4], "checkpoint.keep": [3, 5], "train.epochs": [90, 100]}
    start = {"resumed_at": {"epoch": 3, "step": 7}, "changed": changed, "command": "train.py"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [{"seed": 0}, start]}))
    (line,) = [line for line in report([str(folder)], tmp_path / "out").splitlines() if "Two recipes" in line]
    assert "task.flip=0.0 (was 0.5) after step 7 of epoch 4" in line and "train.epochs=100 (was 90)" in line
    assert "workers" not in line and "keep" not in line
    (folder / "provenance.json").write_text("")
    assert "provenance.json is damaged" in report([str(folder)], tmp_path / "out")
