"""A run resumes only with what it was begun with, ranks train only if they agree, and other changes are reported."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, command, refused, succeed
from conftest import Once, write_folders
from kill_loop import CASES, Case, Place, finish, line, start, train, wait_for_new_step

from en.config.reading import load_config
from en.data import LOADERS
from en.distributed.ranks import Ranks
from en.errors import Stopped, UserError
from en.norm import kernels
from en.norm.built import in_one, layers_as_built
from en.reports.files import write_report
from en.runs import checkpoint, provenance
from en.runs.position import Position
from en.training.run import TrainingRun
from en.training.signals import StopRequest


@pytest.fixture(scope="session")
def midway(place: Place, once: Once) -> Path:
    """A run that was stopped in the middle of its first epoch."""
    return once("midway", lambda folder: stop_midway(place, folder / "run")) / "run"


class StopsAfterAStep(TrainingRun):
    """A run that is asked to stop as it begins."""

    def begin(self):
        begun = super().begin()
        self.request.signal = "SIGUSR1"
        return begun


def stop_midway(place: Place, run: Path) -> None:
    config = load_config(str(place.recipe), line(place, CASES[0], run)[3:])
    stopped = StopsAfterAStep(config, str(place.recipe), StopRequest())
    with pytest.raises(Stopped, match="checkpoint written"):
        stopped.train()
    stopped.folder.close()
    assert checkpoint.load(checkpoint.step_paths(run)[0]).position == Position(step=1)


def begin(place: Place, origin: Path, *overrides: str) -> TrainingRun:
    """Sets up a run that resumes from `origin`, in this process."""
    options = [f"data.root={place.data['ffcv']}", f"resume={json.dumps(str(origin))}", *overrides]
    return TrainingRun(load_config(str(place.recipe), options), str(place.recipe), StopRequest())


BREAKS = {
    "train.batch_size=12": "train.batch_size=12: expected the 24",
    "data.loader=folder": "data.loader=folder: expected the ffcv",
    "seed=1": "seed=1: expected what",
    "model.dropout=0.1": "model.dropout=0.1: expected what",
    "norm.hidden=7": "norm.hidden=7: expected what",
    "optim.momentum=0.5": "optim.momentum=0.5: expected what",
    "schedule.warmup_epochs=0": "schedule.warmup_epochs=0.0: expected what",
}


@pytest.mark.parametrize("override", BREAKS)
def test_a_change_that_breaks_the_current_epoch_is_refused_with_both_values(place, midway, override):
    more = [f"data.root={place.data['folder']}"] if "folder" in override else []
    with pytest.raises(UserError) as refusal:
        begin(place, midway, override, *more)
    assert BREAKS[override] in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_run_resumes_where_a_default_is_written_out_and_as_it_began_where_a_default_has_changed(
    place, midway, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(midway, run)
    begin(place, run, "norm.hidden=50")
    newest = checkpoint.step_paths(run)[0]
    saved = checkpoint.load(newest)
    for options in saved.norms.values():
        options["eps"] = 0.25  # the default of another day
    checkpoint.save(saved, newest)
    with pytest.raises(UserError, match=r"norm\.eps=1e-05: expected what .* began with, 0\.25"):
        begin(place, run, "norm.eps=1e-5")
    assert in_one(layers_as_built(begin(place, run).model))["eps"] == 0.25


@pytest.mark.parametrize("at", ["midway", "end"])
@pytest.mark.parametrize("kind", ["fewer", "other", "renamed"])
def test_another_data_set_is_refused_in_the_middle_of_an_epoch_and_at_its_end(
    place, untouched, midway, tmp_path, kind, at
):
    """fewer: fewer images of the same classes; other: as many, of other sizes; renamed: other classes."""
    origin = midway if at == "midway" else untouched(CASES[0])
    root = tmp_path / "in" / "clothes"
    source = place.data["folder"]
    if kind == "other":
        for path in sorted(source.rglob("*.jpg")):
            target = root / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sorted(path.parent.glob("*.jpg"))[-1].read_bytes())
    else:
        write_folders(root, {"train": 24 if kind == "renamed" else 7, "val": 5})
    if kind == "renamed":
        for split in ("train", "val"):
            (root / split / "Dress").rename(root / split / "Gown")
    succeed("scripts/prepare_data.py", root, tmp_path / "out")
    with pytest.raises(UserError, match=r"data.root=.*expected the (train images|classes) that .* was trained on"):
        begin(place, origin, f"data.root={tmp_path / 'out'}", "train.epochs=6")


def test_the_same_images_prepared_again_are_the_same_data_set(place, midway, tmp_path):
    succeed("scripts/prepare_data.py", place.data["folder"], tmp_path / "out")
    begin(place, midway, f"data.root={tmp_path / 'out'}")


def test_the_folder_loader_identifies_a_data_set_by_its_file_names(folders, tmp_path, place):
    config = load_config(str(place.recipe), [f"data.root={folders}", "data.loader=folder"])
    from en.build import open_loaders
    from en.distributed.ranks import Ranks

    here = open_loaders(config, Ranks(0, 1, 0, 1), ["train"])["train"]
    shutil.copytree(folders, tmp_path / "copy")
    copied = config.model_copy(update={"data": config.data.model_copy(update={"root": str(tmp_path / "copy")})})
    assert open_loaders(copied, Ranks(0, 1, 0, 1), ["train"])["train"].digest == here.digest
    victim = sorted((tmp_path / "copy" / "train").rglob("*.jpg"))[3]
    victim.rename(victim.with_name("another.jpg"))
    assert open_loaders(copied, Ranks(0, 1, 0, 1), ["train"])["train"].digest != here.digest
    assert set(LOADERS) == {"ffcv", "folder"}


def test_fewer_epochs_than_a_run_has_done_are_refused(place, untouched):
    with pytest.raises(UserError, match=r"train.epochs=3: expected at least 4"):
        begin(place, untouched(CASES[0]), "train.epochs=3")
    begin(place, untouched(CASES[0]))


@pytest.mark.parametrize(
    ("override", "anew"),
    [
        ("task.evaluation=resize_crop", True),
        ("task.centre_share=0.5", True),
        ("data.decode=ffcv", True),
        ("data.eval_resolution=64", True),
        ("data.mean=[100.0, 100.0, 100.0]", True),
        ("data.eval_resolution=48", False),  # what it is anyway
        ("task.flip=0.0", False),
        ("train.check_every=7", False),
    ],
)
def test_the_best_score_begins_anew_where_evaluation_sees_other_pixels(place, untouched, override, anew):
    run = begin(place, untouched(CASES[0]), "train.epochs=6", override)
    assert (run.best is None) == anew


def test_other_changes_of_a_resumed_run_are_reported_recorded_and_shown_in_reports(place, midway, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(midway, run)
    newest = checkpoint.step_paths(run)[0]
    saved = checkpoint.load(newest)
    checkpoint.save(saved.model_copy(update={"circumstances": {**saved.circumstances, "threads": 2}}), newest)
    done = train(place, CASES[0], run, "resume=auto", "task.flip=0.0", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert {"resumes with task.flip=0.0 (was 0.5)", "resumes with train.epochs=1 (was 4)"} <= set(lines)
    (rate,) = [each for each in lines if each.startswith("the learning rate goes on at ")]
    assert rate.endswith("schedule.name=cosine falls over 1 epochs (was 4)") and "(was to be 0.0" in rate
    assert (
        "resumes, but not bit for bit: threads=1 (was 2)" in lines
        and len([x for x in lines if x.startswith("resumes")]) == 3
    )
    first, second = json.loads((run / "provenance.json").read_text())["starts"]
    assert second["changed"] == {"train.epochs": [4, 1], "task.flip": [0.5, 0.0]} and second["resumed_at"]["epoch"] == 0
    assert second["not_bit_for_bit"] == {"threads": [2, 1]} and first["native"] == "layers" and "changed" not in first
    assert "EN_NATIVE" in first and first["code"] == second["code"] and first["processor"]
    write_report([str(run)], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Two recipes" in text and "task.flip" in text and "0.5" in text and str(run.name) in text


def test_a_resume_that_changes_nothing_reports_nothing(place, midway, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(midway, run)
    done = train(place, CASES[0], run, "resume=auto")
    assert done.returncode == 0 and "resumes" not in done.stderr, done.stderr
    write_report([str(run)], tmp_path / "report")
    assert "Two recipes" not in (tmp_path / "report" / "report.md").read_text()


def test_a_checkpoint_with_a_right_sum_in_which_a_part_is_missing_is_refused_in_one_line_and_not_scored(
    place, midway, untouched, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(midway, run)
    newest = checkpoint.step_paths(run)[0]
    saved, before = checkpoint.load(newest), sorted(path.name for path in run.rglob("*"))
    fewer = {number: one for number, one in saved.optimizer["state"].items() if number}
    for update, words in (
        ({"ema": None}, "ema is None: expected averages by its train.ema_decay=0.9"),
        ({"ranks": []}, "ranks is a list of 0: expected 1"),
        ({"optimizer": saved.optimizer | {"state": fewer}}, "no momentum of conv1.0.weight"),
    ):
        checkpoint.save(saved.model_copy(update=update), newest)
        line = refused(train(place, CASES[0], run, f"resume={newest}"))
        assert f"{newest.name}: expected the state of" in line and words in line
    assert sorted(path.name for path in run.rglob("*")) == before
    last = checkpoint.load(untouched(CASES[0]) / "last.pt")
    checkpoint.save(last.model_copy(update={"ema": None}), tmp_path / "scored.pt")
    assert "ema is None: expected averages" in refused(command("eval.py", tmp_path / "scored.pt"))


def test_averages_and_a_scaler_that_are_new_in_a_resumed_run_are_told(place, untouched, tmp_path):
    case, run = Case("ffcv", 0, ["train.ema_decay=null", "train.epochs=1"]), tmp_path / "run"
    shutil.copytree(untouched(case), run)
    done = train(place, case, run, "resume=auto", "train.ema_decay=0.5", "train.precision=float16")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "train.ema_decay=0.5: the averages begin at the weights of the checkpoint, which has none" in lines
    assert "train.precision=float16: the scaler of the gradients begins anew" in lines


EVERY = {"numpy", "resampling", "torchvision", "pillow", "pillow_libjpeg_turbo", "libjpeg_turbo"}  # torchvision mixes
MAKERS = {"ffcv": EVERY, "folder": EVERY}


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_a_resume_tells_which_maker_of_its_pixels_has_changed_and_which_the_checkpoint_does_not_know(
    place, untouched, tmp_path, case
):
    run = tmp_path / "run"
    shutil.copytree(untouched(case), run)
    newest = checkpoint.step_paths(run)[0]
    saved, makers = checkpoint.load(newest), MAKERS[case.loader]
    versions = {name: version for name, version in saved.circumstances.items() if name in makers}
    assert versions.keys() == makers and not (set().union(*MAKERS.values()) - makers) & saved.circumstances.keys()
    assert all(re.fullmatch(r"(pillow-13|[0-9]+\.[0-9])[^ ]*", str(version)) for version in versions.values()), versions
    first, *others = versions
    older = {name: value for name, value in saved.circumstances.items() if name not in others}
    news = f"resumes, but not bit for bit: {first}={versions[first]} (was 0.5)"
    unknown = ", ".join(f"{name} (now {versions[name]})" for name in others)
    silence = f"resumes, perhaps not bit for bit: the checkpoint does not tell its {unknown}"
    for circumstances, expected in (
        (saved.circumstances, []),
        (saved.circumstances | {first: "0.5"}, [news]),
        (older | {first: "0.5"}, [news, silence]),
    ):
        checkpoint.save(saved.model_copy(update={"circumstances": circumstances}), newest)
        done = train(place, case, run, f"resume={newest}")
        assert done.returncode == 0, done.stderr
        assert [told for told in done.stderr.splitlines() if told.startswith("resumes")] == expected
    last = json.loads((run / "provenance.json").read_text())["starts"][-1]
    assert last["not_bit_for_bit"] == {first: ["0.5", versions[first]]} and last["not_known"].keys() == set(others)


def test_what_does_not_make_a_runs_pixels_is_not_among_its_circumstances(place, midway):
    run = begin(place, midway, "task.mixup=0", "task.cutmix=0", "task.rand_augment=0")
    assert set(run.made_by()) == MAKERS["ffcv"] - {"torchvision"}
    assert run.facts().items() >= run.made_by().items()


@pytest.mark.parametrize(("word", "graphs"), [("graphs", "coefficients"), ("eager", "nothing"), ("0", "nothing")])
def test_what_graphs_hold_is_among_the_circumstances_of_a_compiled_run_alone(word, graphs, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, word)
    ranks, device = Ranks(0, 1, 0, 1), torch.device("cpu")
    eager, compiled = (provenance.circumstances(ranks, device, {}, each) for each in (False, True))
    assert compiled == eager | {"graphs": graphs} and "graphs" not in eager


@pytest.mark.parametrize(
    ("script", "extra", "parts"),
    [
        (
            "train.py",
            "seed=1 task.flip=0.1",
            ["seed is 0 on rank 0, 1 on rank 1", "task.flip is 0.5 on rank 0, 0.1 on rank 1"],
        ),
        ("train.py", "data.root={other}", ["data.train.digest is", "data.val.digest is"]),
        (
            "eval.py",
            "data.mean=[1,2,3]",
            ["data.mean is [123.675, 116.28, 103.53] on rank 0, [1.0, 2.0, 3.0] on rank 1"],
        ),
    ],
)
def test_ranks_that_differ_are_refused_with_key_and_rank(place, untouched, tmp_path, script, extra, parts):
    other, run = tmp_path / "other", tmp_path / "run"
    if "{other}" in extra:
        write_folders(tmp_path / "in" / "clothes", {"train": 24, "val": 5})
        for split in ("train", "val"):
            first, second, *_ = sorted((tmp_path / "in" / "clothes" / split).rglob("*.jpg"))
            first.write_bytes(second.read_bytes())
        succeed("scripts/prepare_data.py", tmp_path / "in" / "clothes", other)
    arguments = [untouched(CASES[0])]
    if script == "train.py":
        arguments = [place.recipe, f"data.root={place.data['ffcv']}", f"run_dir={run}"]
    done = command(
        "tests/differing_ranks.py", ROOT / script, extra.format(other=other), *arguments, ranks=2, torchrun=False
    )
    (message,) = [text for text in done.stderr.splitlines() if text.startswith("error: the ranks differ")]
    assert done.returncode == 2 and all(part in message for part in parts), done.stderr
    assert not run.exists()


def test_a_mistake_on_a_later_rank_only_is_reported_with_its_number(place, tmp_path):
    arguments = [place.recipe, f"data.root={place.data['ffcv']}", f"run_dir={tmp_path / 'run'}"]
    done = command(
        "tests/differing_ranks.py",
        ROOT / "train.py",
        f"data.root={tmp_path / 'nowhere'}",
        *arguments,
        ranks=2,
        torchrun=False,
    )
    assert done.returncode == 2 and "error: rank 1: " in done.stderr and "nowhere" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_evaluating_non_finite_weights_is_an_error(untouched, tmp_path):
    saved = torch.load(untouched(CASES[0]) / "last.pt", weights_only=True)
    name = next(name for name in saved["ema"] if name.endswith("conv1.0.weight"))
    saved["ema"][name][0] = np.nan
    torch.save(saved, tmp_path / "nan.pt")
    done = command("eval.py", tmp_path / "nan.pt")
    *_, last = done.stderr.strip().splitlines()
    assert done.returncode == 1 and last.startswith("error: ") and f"{name} is not finite" in last and not done.stdout
    saved["ema"] = {key: value.to(torch.int8) for key, value in saved["model"].items()}
    torch.save(saved, tmp_path / "int8.pt")
    done = command("eval.py", tmp_path / "int8.pt")
    assert done.returncode == 2 and "expected torch.float32, found torch.int8" in done.stderr.splitlines()[-1]


def test_a_power_cut_costs_the_torn_log_lines_and_a_warning_each(place, untouched, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(untouched(CASES[0]), run)
    (run / "provenance.json").write_bytes(b"")
    rows = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([rows[0], rows[1][:40], *rows[2:], "[1]", '{"epoch": "two"}']) + "\n")
    done = train(place, CASES[0], run, "resume=auto", "train.epochs=5")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    warnings = [text for text in done.stderr.splitlines() if text.startswith("warning: ")]
    text = " ".join(warnings)
    assert len(warnings) == 4 and "provenance.json: damaged" in text and "log.jsonl:2: not a whole row" in text
    assert [json.loads(text)["epoch"] for text in (run / "log.jsonl").read_text().splitlines()] == [1, 3, 4, 5]
    assert len(json.loads((run / "provenance.json").read_text())["starts"]) == 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_run_folder_lost_during_a_run_ends_it_in_one_line_and_is_not_recreated(place, tmp_path, how):
    run = tmp_path / "run"
    process = start(line(place, CASES[0], run, "train.epochs=500"))
    assert wait_for_new_step(process, run, set())
    run.rename(tmp_path / "gone")
    if how == "replaced":
        run.mkdir()
    code, errors = finish(process)
    assert code == 1 and "Traceback" not in errors, errors
    assert f"run_dir={run}: expected the folder that this run began in" in errors.splitlines()[-1]
    assert not run.exists() or not list(run.iterdir())
    assert list((tmp_path / "gone").iterdir())


def test_the_arguments_of_eval_are_refused_in_one_line(tmp_path):
    for where in ("", "x" * 5000, tmp_path, tmp_path / "nowhere", "/dev/null"):
        assert len(refused(command("eval.py", where))) < 600
