"""Signals at any time of a run: exit code 75 with a checkpoint, or an untouched folder."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from commands import Together
from kill_loop import CASES, Case, Started, differences, finish, line, ranks_of, start, start_ranks, wait_for_new_step

from en.errors import RESUME_ME
from en.training.signals import SAME_KEY_S, STOPPING, StopRequest


@pytest.fixture
def handlers():
    """Restores the signal handlers afterwards."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_ctrl_c_ends_the_process_at_once_but_not_an_echo_of_the_first(handlers):
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        stop.defer()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        time.sleep(SAME_KEY_S + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) == stop._hear  # a third one ends a hanging process


@pytest.mark.parametrize("number", STOPPING)
def test_signals_while_a_process_is_ending_change_nothing(handlers, number):
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert stop.signal == number.name and signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.slow(reason="torchrun and its interpreters start cold")
@pytest.mark.parametrize(
    ("case", "number"), [(CASES[0], signal.SIGUSR1), (CASES[3], signal.SIGTERM)], ids=["SIGUSR1", "SIGTERM-2-ranks"]
)
def test_after_a_signal_the_run_finishes_the_step_writes_a_checkpoint_and_resumes_from_it(
    place, untouched, tmp_path, case, number
):
    """Several ranks have it from torchrun alone; of one process, the storm looks at its interpreter's end."""
    run = tmp_path / "run"
    process = start(line(place, case, run, "checkpoint.every_steps=3"))
    assert wait_for_new_step(process, run, set())
    process.send_signal(number)
    code, errors = finish(process)
    assert f"stopped by {number.name} after " in errors and "checkpoint written" in errors
    assert code == RESUME_ME if not case.ranks else code != 0
    assert "Traceback (most recent call last)" not in errors or case.ranks  # torchrun's own
    code, errors = finish(start_ranks(place, case, run, "resume=auto", "checkpoint.every_steps=3"))
    assert code == 0, errors
    assert differences(untouched(case), run) == []


def test_a_ctrl_c_that_ranks_hear_from_the_terminal_and_from_torchrun_is_one(place, untouched, tmp_path):
    case, run = CASES[3], tmp_path / "run"
    process = start_ranks(place, case, run, "checkpoint.every_steps=3")
    assert wait_for_new_step(process, run, set())
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    code, errors = finish(process)
    assert code == RESUME_ME and errors.count("stopped by SIGINT after ") == 1, errors
    code, errors = finish(start_ranks(place, case, run, "resume=auto", "checkpoint.every_steps=3"))
    assert code == 0, errors
    assert differences(untouched(case), run) == []


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_a_storm_of_signals_acts_like_one_signal(place, untouched, tmp_path, case):
    """Signals one process with its interpreter, which ends in it; several ranks are not started by torchrun."""
    run, draw = tmp_path / "run", random.Random(str(case))
    if case.ranks:
        process: Started = start_ranks(place, case, run, "checkpoint.every_steps=3")
    else:
        process = start(line(place, case, run, "checkpoint.every_steps=3"), cold=True)
    assert wait_for_new_step(process, run, set())
    targets = [psutil.Process(each.pid) for each in (process.processes if isinstance(process, Together) else [process])]
    sent = 0
    while any(map(goes_on, targets)) and sent < 10_000:
        for target in targets:
            try:
                target.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1]))
            except psutil.NoSuchProcess:
                continue
        sent += 1
        time.sleep(0.001)
    code, errors = finish(process)
    assert "checkpoint written" in errors and sent > 30, errors
    assert code == RESUME_ME, errors
    code, errors = finish(start_ranks(place, case, run, "resume=auto"))
    assert code == 0, errors
    assert differences(untouched(case), run) == []


def goes_on(process: psutil.Process) -> bool:
    """Tells whether a process has not ended; it may while it is looked at."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def touched(run: Path) -> bool:
    """Whether a run has written anything into its folder."""
    return run.exists() and any(run.iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_during_set_up_leaves_an_untouched_folder_or_a_checkpoint(place, tmp_path, seed):
    draw, processes = random.Random(seed), {}
    for number in range(2):
        run = tmp_path / str(number)
        case = Case("ffcv", 0, ["train.epochs=50", "checkpoint.every_steps=1000"])
        processes[run] = start(line(place, case, run), cold=True)
    for process in processes.values():
        time.sleep(draw.uniform(0.2, 4.0))
        for _ in range(draw.randint(1, 3)):
            process.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1]))
    for run, process in processes.items():
        code, errors = finish(process)
        assert code == RESUME_ME and "Traceback" not in errors, errors
        assert not touched(run) or list((run / "checkpoints").glob("step_*.pt")), errors


def test_a_signal_to_one_rank_before_the_start_stops_all_and_leaves_the_folder_untouched(place, tmp_path):
    run, process = tmp_path / "run", start(line(place, CASES[3], tmp_path / "run"))
    while not (ranks := ranks_of(process)):
        time.sleep(0.01)
    time.sleep(1.0)
    ranks[max(ranks)].send_signal(signal.SIGUSR1)
    code, errors = finish(process)
    assert code != 0 and not touched(run), errors
