"""A run goes on from its folder alone, from an older checkpoint only where asked, and elsewhere as a branch."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from commands import command, refused
from kill_loop import Case, differences, finish, kill, line, ranks_of, rows, start, steps, wait_for_new_step

from en.config.reading import load_config
from en.config.schema import Config
from en.errors import UserError
from en.runs import checkpoint
from en.runs.course import Course, course_of
from en.runs.folder import RunFolder, steps_of
from en.runs.read import whole_rows
from en.runs.start import Fresh, Resumed, find_start, load_begun

WHOLE = Case("ffcv", 0, ["checkpoint.keep=100"])
OLDER = "step_00001_00000002.pt"  # in the middle of the second epoch


@pytest.fixture
def run(untouched, tmp_path) -> Path:
    """A copy, elsewhere, of a finished run with all its checkpoints."""
    return Path(shutil.copytree(untouched(WHOLE), tmp_path / "run"))


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def last_start(run: Path) -> dict[str, object]:
    start: dict[str, object] = json.loads((run / "provenance.json").read_text())["starts"][-1]
    return start


def without_tensorboard(found: list[str]) -> list[str]:
    return [each for each in found if not each.startswith("TensorBoard")]


def test_an_older_checkpoint_in_a_runs_own_folder_is_refused_and_with_the_flag_says_what_it_drops(untouched, run):
    """And needs nothing but the run: it has been moved, and its configuration lies in it."""
    older, before = run / "checkpoints" / OLDER, content(run)
    for path, words in ((older, r"step 2 of epoch 2"), (older.with_name("step_00001_00000000.pt"), "epoch 1")):
        told = refused(command("train.py", "--resume", path))
        assert f"--resume {path}: {words}, of a run that is at epoch 4: expected" in told
        assert "step_00004_00000000.pt" in told and "run_dir=FOLDER" in told and "--drop-later" in told
    assert content(run) == before
    done = command("train.py", "--resume", older, "--drop-later", "data.workers=0")
    assert done.returncode == 0, done.stderr
    (dropped,) = [each for each in done.stderr.splitlines() if "drops" in each]
    assert "step_00004_00000000.pt; step_00003" in dropped and "more, and their rows of the logs" in dropped
    assert "resumes with data.workers=0 (was 1)" in done.stderr
    assert differences(untouched(WHOLE), run) == []
    record = last_start(run)
    assert set(record["dropped"]) == {name for name in steps(run) if name > OLDER}
    assert record["resumed_from"]["checkpoint"] == str(older) and len(record["resumed_from"]["sha256"]) == 64


def test_a_branch_in_a_folder_of_its_own_leaves_the_run_as_it_was_and_says_where_it_is_from(untouched, run, tmp_path):
    older, before, new = run / "checkpoints" / OLDER, content(run), tmp_path / "branch"
    process = start([sys.executable, "train.py", "--resume", str(older), f"run_dir={new}"])
    assert wait_for_new_step(process, new, {OLDER})
    errors = kill(process)
    assert f"resumes as a branch of {run}: from {older}, step 2 of epoch 2" in errors
    (record,) = [each for each in [last_start(new)] if each["branch_of"] == str(run)]
    assert record["resumed_at"] == {"epoch": 1, "step": 2} and record["resumed_from"]["asked"] == str(older)
    newest = max(steps(new))
    assert newest > OLDER
    again = command("train.py", "--resume", older, f"run_dir={new}")
    assert again.returncode == 0, again.stderr
    assert last_start(new)["resumed_from"]["checkpoint"] == str(new / "checkpoints" / newest)
    assert without_tensorboard(differences(untouched(WHOLE), new)) == []
    starts = json.loads((new / "provenance.json").read_text())["starts"]
    assert ["resumed_at" in each for each in starts] == [False, True, True]
    assert content(run) == before
    other = run / "checkpoints" / "step_00002_00000000.pt"
    assert "holds a run already" in refused(command("train.py", "--resume", other, f"run_dir={new}"))
    assert "holds a run already" in refused(command("train.py", "--resume", run, f"run_dir={new}"))


def test_a_branch_goes_on_with_other_keys_and_has_the_best_checkpoint_so_far(run, tmp_path):
    new, at = tmp_path / "branch", run / "checkpoints" / "step_00002_00000003.pt"
    best = checkpoint.load(at).best
    done = command("train.py", "--resume", at, f"run_dir={new}", "task.flip=0.0", "train.epochs=3", "seed=0")
    assert done.returncode == 0, done.stderr
    assert "resumes with task.flip=0.0 (was 0.5)" in done.stderr and len(rows(new)) == 3
    assert rows(new)[:2] == rows(run)[:2] and len(rows(run)) == 4
    top = checkpoint.load(new / "best.pt")
    assert top.best is not None and best is not None and top.best["score"] >= best["score"]
    assert "seed=1: expected what" in refused(
        command("train.py", "--resume", at, f"run_dir={tmp_path / 'x'}", "seed=1")
    )
    assert not (tmp_path / "x").exists()


def test_a_branch_does_not_go_on_as_that_of_another_checkpoint(run, tmp_path):
    """Its first starts are those of the run, which was itself resumed by its folder."""
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    starts.append(starts[-1] | {"resumed_at": {"epoch": 0, "step": 1}, "resumed_from": {"asked": str(run.resolve())}})
    (run / "provenance.json").write_text(json.dumps({"starts": starts}))
    lay_out(config_of(run, run / "checkpoints" / OLDER, f"run_dir={tmp_path / 'branch'}"), False)
    with pytest.raises(UserError, match="branch: holds a run already: expected a new folder"):
        find_start(config_of(run, run, f"run_dir={tmp_path / 'branch'}"), "recipe.yaml")


def test_starts_that_nobody_can_read_do_not_end_a_branch(run, tmp_path):
    (run / "provenance.json").write_text('{"starts": [{"resumed_at": 7}]}')
    branch = lay_out(config_of(run, run / "checkpoints" / OLDER, f"run_dir={tmp_path / 'branch'}"), False)
    assert (branch / "config.yaml").is_file()


def test_a_resume_from_what_is_no_run_names_it_and_so_does_a_flag_without_use(run, tmp_path):
    for asked in ("nothing.pt", "", str(tmp_path)):
        assert f"--resume {asked}: " in refused(command("train.py", "--resume", asked))
    assert "--drop-later: expected --resume" in refused(command("train.py", "--resume", run, "--drop-later"))


def test_notes_of_an_epoch_of_more_steps_stay():
    course = Course(2, 4, None, False)
    assert steps_of({"epoch": 3, "step": 4}, "events.jsonl", course) == 6


def test_a_resume_needs_no_configuration_and_takes_it_from_the_folder_or_else_the_checkpoint(run, tmp_path):
    shown = command("train.py", "--resume", run, "train.epochs=6", "--print-config").stdout
    assert "epochs: 6" in shown and "run_dir: null" in shown and "dropout: 0.2" in shown
    alone = tmp_path / "alone.pt"
    shutil.copy(run / "last.pt", alone)
    assert "dropout: 0.2" in command("train.py", f"resume={alone}", "--print-config").stdout
    (run / "config.yaml").unlink()
    assert f"--resume {run}: a folder without config.yaml: expected a run folder" in refused(
        command("train.py", "--resume", run)
    )
    for arguments in ([], ["optim.lr=1"], ["--resume", "auto"], ["--resume", "auto", f"run_dir={run}"]):
        assert "CONFIG: missing: expected a YAML file" in refused(command("train.py", *arguments))
    assert "--resume nowhere: no such file or folder" in refused(command("train.py", "--resume", "nowhere"))


def test_the_newest_checkpoint_under_any_of_its_names_is_no_branch(run):
    for name in ("last.pt", "checkpoints/step_00004_00000000.pt"):
        begun = find_start(config_of(run, run / name), "recipe.yaml")
        assert isinstance(begun, Resumed) and not begun.drops and begun.home == begun.folder == run


def config_of(run: Path, resume: Path, *overrides: str) -> Config:
    return load_config(str(run / "config.yaml"), ["run_dir=null", f"resume={resume}", *overrides])


def lay_out(config: Config, drop_later: bool) -> Path:
    """Does to the folders what a run does before its first step."""
    begun = find_start(config, "recipe.yaml", drop_later)
    assert isinstance(begun, Resumed)
    course = course_of(config, begun.saved.data["train"]["samples"])
    folder = RunFolder(begun.folder, True, ["ratios"])
    begun.enter(folder)
    record = begun.record(config, begun.saved.data, {})
    folder.start(config, course, course.done(begun.evaluated), course.done(begun.position), record, begun.history)
    begun.settle(folder, course.epochs)
    folder.close()
    return begun.folder


def dies(config: Config, drop_later: bool, operation: int) -> bool:
    """Does so in a process that is killed before one of its changes to the file system, counted from 0."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    done = -1

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if event in ("os.rename", "os.link", "os.remove", "os.mkdir") or writes:
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        lay_out(config, drop_later)
        os._exit(0)
    finally:
        os._exit(1)


def files(run: Path) -> dict[str, bytes]:
    """Reads what a run folder holds but for its starts, the lock and TensorBoard's events."""
    return {name: text for name, text in content(run).items()
            if not name.startswith(("events.out", "by_step", "provenance", ".lock"))}  # fmt: skip


@pytest.mark.slow(reason="a kill before each change of some 30 to the file system")
@pytest.mark.parametrize("where", ["own", "elsewhere"])
def test_a_branch_whose_making_is_killed_anywhere_is_made_by_the_same_command(run, tmp_path, where):
    kept, place = tmp_path / "kept", tmp_path / "branch"
    for path in checkpoint.step_paths(run):
        if path.name not in (OLDER, "step_00003_00000000.pt", "step_00004_00000000.pt"):
            checkpoint.remove([path])
    shutil.copytree(run, kept)
    more = [] if where == "own" else [f"run_dir={place}"]
    config = config_of(run, run / "checkpoints" / OLDER, *more)

    def restore() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(run)
        shutil.copytree(kept, run)

    made = files(lay_out(config, True))
    assert len([name for name in made if "step_" in name and name.endswith(".pt")]) == (
        len([name for name in steps(kept) if name <= OLDER]) if where == "own" else 1
    )
    operation = 0
    while True:
        restore()
        if not dies(config, True, operation):
            break
        if where == "own":  # whoever only goes on has a whole run too: the rows of its checkpoint and those before
            begun = find_start(config_of(run, run), "recipe.yaml")
            assert isinstance(begun, Resumed)
            course = course_of(config, begun.saved.data["train"]["samples"])
            steps_logged = [steps_of(row, "log.jsonl", course) for row in whole_rows(run / "log.jsonl")]
            assert course.done(begun.evaluated) in steps_logged
        assert files(lay_out(config, True)) == made, operation
        operation += 1
    assert operation > (20 if where == "own" else 12)


def test_a_restart_goes_on_from_a_branchs_own_newest_and_makes_one_that_had_not_begun(run, tmp_path, monkeypatch):
    older = run / "checkpoints" / OLDER
    own, elsewhere = config_of(run, older), config_of(run, older, f"run_dir={tmp_path / 'branch'}")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(UserError, match="--drop-later"):
        find_start(own, "recipe.yaml")
    for config in (elsewhere, own):
        begun = find_start(config, "recipe.yaml", True)
        assert isinstance(begun, Resumed) and begun.origin == older
        folder = lay_out(config, True)
        further = folder / "checkpoints" / "step_00001_00000003.pt"  # a step of the branch
        checkpoint.link(older, further)
        for _ in range(2):
            begun = find_start(config, "recipe.yaml", True)
            assert isinstance(begun, Resumed) and begun.origin == further and not begun.drops
            lay_out(config, True)
            checkpoint.link(older, further)
    checkpoint.remove([older])  # as checkpoint.keep does
    for config in (elsewhere, own):
        assert find_start(config, "recipe.yaml", True).position == checkpoint.load(further).position
    assert load_begun([f"resume={older}"])[0].model == own.model
    assert isinstance(find_start(config_of(run, run, "resume=null"), "recipe.yaml"), Fresh)


@pytest.mark.slow(reason="torchrun starts two interpreters twice")
def test_torchrun_restarts_a_branch_whose_rank_was_killed_and_it_ends_as_the_untouched_run(place, untouched, tmp_path):
    case = Case("ffcv", 2, ["checkpoint.keep=100"])
    run, newest = tmp_path / "run", OLDER
    shutil.copytree(untouched(case), run)
    command_line = line(place, case, run, f"resume={run / 'checkpoints' / OLDER}", "--drop-later",
                        launcher=("--standalone", "--max-restarts=2"))  # fmt: skip
    before = steps(run)
    process = start(command_line)
    while not (steps(run) < before and max(steps(run)) > newest):
        assert process.poll() is None
        time.sleep(0.01)
    ranks_of(process)[1].kill()
    code, errors = finish(process)
    assert code == 0, errors
    assert "rank 1 left the run" in errors and errors.count("drops") == 1, errors
    assert differences(untouched(case), run) == []
