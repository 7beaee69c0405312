"""Workers of the folder loader that cannot hand over what they made, or that nobody ends."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ended
from kill_loop import finish, start
from readers import reading

from en.data import LOADERS
from en.data.folder import end_of_a_worker

CLONE_NEWNS = 0x20000  # linux/sched.h
LIMIT_S = 15
UNCLOSED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from readers import reading
from en.data import LOADERS
loader = LOADERS["folder"](Path({root!r}), "train", reading(workers=2))
batches = loader.train_epoch(0, (16, 16))
print(next(batches).images.shape)
{then}
"""


def fill_shared_memory() -> None:
    """Gives this process a /dev/shm of 1 MB. Raises: subprocess.CalledProcessError or OSError where it may not."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for line in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]):
        subprocess.run(["mount", *line], check=True, capture_output=True)


def limit_files() -> None:
    """Lets this process and its workers write no more than 100 kB into a file, in shared memory too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("limit", [fill_shared_memory, limit_files])
def test_a_batch_that_shared_memory_does_not_take_ends_the_loader_at_once_with_the_cause(folders, forked, capfd, limit):
    def read() -> None:
        try:
            limit()
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(77) from error
        next(LOADERS["folder"](folders, "train", reading(workers=2, timeout_s=LIMIT_S)).train_epoch(0, (224, 224)))

    began = time.monotonic()
    code = ended(forked(read))
    if code == 77:
        pytest.skip("this user may not mount a /dev/shm")
    error = capfd.readouterr().err.strip()
    assert code == 1 and time.monotonic() - began < LIMIT_S / 2
    reason = "No space left on device" if limit is fill_shared_memory else "File too large"
    assert "could not hand over a batch: " in error and reason in error and "\n" not in error
    assert "/dev/shm has " in error and "or data.workers=0" in error


@pytest.mark.parametrize("then", ["sys.kept = loader", "assert False"])
def test_a_process_ends_although_nobody_has_closed_its_loader(folders, tmp_path, then):
    script = tmp_path / "unclosed.py"
    script.write_text(UNCLOSED.format(tests=str(Path(__file__).parent), root=str(folders), then=then))
    code, errors = finish(start([sys.executable, str(script)]), limit_s=LIMIT_S)
    assert code == then.startswith("assert"), errors


def test_closing_a_loader_ends_a_worker_that_is_stuck(folders):
    loader = LOADERS["folder"](folders, "train", reading(workers=1))
    next(loader.train_epoch(0, (16, 16)))
    (worker,) = loader._workers()
    os.kill(worker.pid, signal.SIGSTOP)
    loader.close()
    worker.join(LIMIT_S / 2)
    assert worker.exitcode == -signal.SIGKILL


def test_a_worker_that_shared_memory_killed_is_named_with_how_much_there_is(folders):
    loader = LOADERS["folder"](folders, "train", reading(workers=1))
    next(loader.train_epoch(0, (16, 16)))
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own raises
    try:
        (worker,) = loader._workers()
        os.kill(worker.pid, signal.SIGBUS)
        end = end_of_a_worker([worker], LIMIT_S)
    finally:
        loader.close()
        signal.signal(signal.SIGCHLD, handler)
    assert "was killed by signal 7 (Bus error); /dev/shm has " in end and "or data.workers=0" in end
