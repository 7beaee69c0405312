"""C++ compiled once for each kind of processor and kept, in a folder that no other user can put code into."""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
FLAGS += ("-DTORCH_TARGET_VERSION=0x020b000000000000",)  # torch 2.11, the oldest that is supported
FLAGS += ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
"""Options of the compiler for torch's operators."""

ALONE: tuple[str, ...] = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
"""Options for functions that need no library, whose numbers of type double are rounded after each operation."""

WAIT_S = 120.0
"""Seconds that a process waits for another one that compiles; it takes about 10 (our choice)."""


def compiled_library(source: Path, symbol: str, flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL:
    """The library of a source file and of all that lies beside it, for this processor, with a function `symbol`.

    Which compiler made it does not matter: a machine may have none any more.

    Args:
        flags: FLAGS, which links with torch, or ALONE.
    Raises: OSError without a compiler or a place to keep it, subprocess.SubprocessError where it does not compile.
    """
    key = "\n".join([*(path.read_text() for path in sorted(source.parent.iterdir())), *flags, processor()])

    def make(target: Path) -> None:
        compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
        if compiler is None:
            raise OSError("there is no g++ and no clang++")
        notice = f"en compiles {source.name}, once for this processor: about 10 s\n"
        print(notice, end="", file=sys.stderr, flush=True)
        torch_folder = Path(torch.__file__).parent
        headers, libraries = [f"-I{torch_folder / 'include'}"], [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
        if flags == ALONE:
            headers, libraries = [], []
        command = [compiler, *flags, *headers, str(source), *libraries, "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    return kept_library(f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}", make, symbol)


def processor() -> str:
    """Describes what -march=native depends on: a cache on a shared disk serves machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(
        [platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(kinds)})]
    )


def kept_library(name: str, make: Callable[[Path], object], symbol: str) -> ctypes.CDLL:
    """The library `name` with a function `symbol`, from the user's cache; made by make(path) unless it is there whole.

    A file's name ends with its SHA-256, so that a half-written one is noticed and rebuilt before it is mapped: what is
    missing from a mapped file ends the process. One process makes it while the others wait, for WAIT_S at most.

    Raises: OSError where it can be neither read nor kept in any folder, and what `make` raises.
    """
    failure = OSError("there is no folder to keep compiled code in")
    for folder in folders():
        try:
            for part in reversed((folder, *folder.parents)):
                part.mkdir(mode=0o700, exist_ok=True)
            home = folder.resolve()
            if reason := distrust(home):
                failure = OSError(reason)
                warnings.warn(f"en keeps no compiled code in {folder}: {reason}", RuntimeWarning, stacklevel=2)
                continue
            library = find(home, name, symbol)
            if library is None:
                with turn(home):
                    library = find(home, name, symbol) or ctypes.CDLL(str(write(home, name, make)))
            return library
        except OSError as error:
            failure = error
    raise failure


def folders() -> Iterator[Path]:
    """Lists where libraries may be kept, the best first: XDG's cache folder, in the home folder unless set; /tmp."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # the standard has a relative one ignored
        yield given / "en"
    elif home := own_home():
        yield home / ".cache" / "en"
    yield Path(tempfile.gettempdir()) / f"en-{os.geteuid()}"


def own_home() -> Path | None:
    """The home folder; None where there is none or it is another user's, as under sudo and in many containers."""
    try:
        home = Path.home()
        return home if home.is_absolute() and home.stat().st_uid in owners() else None
    except (OSError, RuntimeError):
        return None


def owners() -> set[int]:
    """Users whose code runs here in any case: this one, and the system's, who has another number in some containers."""
    return {os.geteuid(), 0, Path("/").stat().st_uid}


def distrust(path: Path) -> str:
    """Why another user could have written what is at a resolved path, in one line; empty when none could.

    The rule is ssh's for its keys: it holds for every folder above too. In a sticky one, such as /tmp, others cannot
    replace what is not theirs.
    """
    for part in (path, *path.parents):
        status = part.lstat()
        sticky = part != path and status.st_mode & stat.S_ISVTX
        if status.st_uid not in owners():
            return f"{part} belongs to user {status.st_uid}: expected {os.geteuid()}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return (
                f"{part} has mode {stat.S_IMODE(status.st_mode):o}: expected that others cannot write it (chmod go-w)"
            )
    return ""


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is in here with the folder, for WAIT_S at most; ends with its process."""
    descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + WAIT_S
    try:
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks: several may compile, and do not disturb each other
                break
        yield
    finally:
        os.close(descriptor)


def find(folder: Path, name: str, symbol: str) -> ctypes.CDLL | None:
    """A whole library of this name that only this user can have written, that this machine can load."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        if not distrust(path) and path.is_file() and path == named(path, name):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:  # of another architecture, or no library
                continue
            if hasattr(library, symbol):
                return library
    return None


def write(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Makes a library and puts it into the folder, whole or not at all, whenever the machine stops."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        fresh = Path(temporary) / "fresh.so"
        make(fresh)
        fresh.chmod(0o700)
        sync(fresh)
        target = folder / named(fresh, name).name
        fresh.replace(target)
    sync(folder)
    return target


def named(path: Path, name: str) -> Path:
    """The file beside `path` that its content belongs into."""
    return path.with_name(f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
