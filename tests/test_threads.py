"""Threads of a single process: chosen before torch is loaded, kept over a resume, left alone where they are set."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import ROOT, environment_of
from kill_loop import CASES

from en.threads import VARIABLE, idle_of

CORES = sorted(os.sched_getaffinity(0))[:2]
RECIPE = """
model: {name: timm/resnet10t, options: {channels: [16, 32, 64, 128], stem_width: 8}}
norm: {name: bn}
data: {resolution: 32, loader: folder}
train: {epochs: 1, batch_size: 48}
optim: {lr: 0.01}
device: cpu
"""
CHOICE = "import os, en.threads; en.threads.choose_threads(); print(os.environ['OMP_NUM_THREADS'])"


def start_on_cores(line: list[str], **environment: str) -> subprocess.Popen[str]:
    """Starts Python on CORES alone, with OMP_NUM_THREADS as in `environment`."""
    env = {name: value for name, value in environment_of().items() if name != VARIABLE} | environment

    def stay() -> None:
        os.sched_setaffinity(0, CORES)

    return subprocess.Popen(
        [sys.executable, *line], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=stay
    )


def on_cores(line: list[str], **environment: str) -> tuple[str, str]:
    """Runs it to its end, which has to be a good one. Returns: stdout and stderr."""
    process = start_on_cores(line, **environment)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, errors


@contextmanager
def busy_cores() -> Iterator[None]:
    """A program of another's on each of CORES."""
    spin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
    programs = [
        subprocess.Popen([sys.executable, "-c", spin, str(core)], stdout=subprocess.PIPE, text=True) for core in CORES
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        yield
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def test_a_process_beside_busy_programs_computes_with_half_of_the_cores():
    with busy_cores():
        assert int(on_cores(["-c", CHOICE])[0]) == max(1, len(CORES) // 2)


@pytest.mark.parametrize("given", ["1", "7"])
def test_a_number_of_threads_that_is_set_stays(given):
    assert on_cores(["-c", CHOICE], OMP_NUM_THREADS=given)[0].strip() == given


def test_ranks_are_left_to_their_launcher():
    told = {"WORLD_SIZE": "2", "RANK": "1"}
    said, _ = on_cores(["-c", CHOICE.replace("['OMP_NUM_THREADS']", ".get('OMP_NUM_THREADS')")], **told)
    assert said.strip() == "None"


@pytest.mark.parametrize(
    "idle, iowait, counted",
    [([100, 100], [0, 0], 2), ([0, 100], [0, 0], 1), ([0, 40], [60, 20], 2), ([49, 0], [0, 0], 0)],
)
def test_a_core_is_idle_that_had_nothing_to_do_for_half_of_the_time(idle, iowait, counted):
    before = {core: [5, 5, 5, 5, 5] for core in (0, 1)}
    after = {core: [5 + 100 - idle[core] - iowait[core], 5, 5, 5 + idle[core], 5 + iowait[core]] for core in (0, 1)}
    assert idle_of({0, 1}, before, after) == counted


def test_a_core_of_which_the_system_tells_nothing_counts_as_idle():
    assert idle_of({0, 1, 2}, {}, {}) == 3


RESUMED = """
import sys
from pathlib import Path
from en.threads import choose_threads
choose_threads()
print(flush=True)
import torch
from en.runs import checkpoint
from en.runs.resume import keep_threads
saved = checkpoint.load(Path(sys.argv[1]))
for threads in map(int, sys.argv[2:]):
    keep_threads({**saved.circumstances, "threads": threads})
    print(torch.get_num_threads())
"""


def test_a_resumed_run_goes_on_with_its_threads_unless_they_are_more_than_the_cores(untouched):
    last = untouched(CASES[0]) / "last.pt"
    with busy_cores():  # so that others would be chosen
        process = start_on_cores(["-c", RESUMED, str(last), "64", str(len(CORES))])
        assert process.stdout is not None
        process.stdout.readline()
    found = process.communicate(timeout=300)[0].split()
    assert found == [str(max(1, len(CORES) // 2)), str(len(CORES))]


def test_provenance_keeps_threads_workers_and_how_threads_wait(folders: Path, tmp_path: Path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    line = [str(ROOT / "train.py"), str(recipe), f"data.root={folders}", f"run_dir={run}"]
    _, errors = on_cores(line, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    (start,) = json.loads((run / "provenance.json").read_text())["starts"]
    assert (start["threads"], start["workers"]) == (1, max(1, len(CORES) // 2))
    assert start["waiting"] == {"OMP_WAIT_POLICY": "passive"} and "1 thread on " in errors
