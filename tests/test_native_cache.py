"""The cache of compiled code: broken libraries are rebuilt, and what another user can write is never run."""

import ctypes
import fcntl
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ended

from en.native import cache
from en.native.cache import compiled_library, kept_library
from en.norm import kernels
from en.norm.kernels import cpu, plan


class Compiler:
    """Builds libraries whose answer() is a given number, and counts them."""

    def __init__(self, answer: int) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, target: Path) -> None:
        self.calls += 1
        source = f"int answer() {{ return {self.answer}; }}"
        subprocess.run(["g++", "-x", "c", "-", "-shared", "-fPIC", "-o", target], input=source, text=True, check=True)


def kept(name: str, make: Callable[[Path], object]) -> ctypes.CDLL:
    return kept_library(name, make, "answer")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder and a temporary folder, the only places that can hold libraries."""
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def libraries(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_library_is_built_once_and_only_this_user_can_write_it(places):
    make, before = Compiler(42), os.umask(0)
    try:
        assert [kept("x", make).answer() for _ in range(3)] == [42] * 3
    finally:
        os.umask(before)
    (path,) = libraries(places)
    assert make.calls == 1 and path.parent == places / "home" / ".cache" / "en"
    assert all(part.stat().st_mode & 0o077 == 0 for part in (path, path.parent, path.parent.parent))


def test_a_half_written_or_changed_library_is_rebuilt(places):
    make = Compiler(42)
    kept("x", make)
    (path,) = libraries(places)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for number, content in enumerate(
        [b"", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(len(whole)), changed]
    ):
        path.unlink()  # the library that this process has mapped stays intact
        path.write_bytes(content)
        path.chmod(0o700)
        assert kept("x", make).answer() == 42
        assert make.calls == number + 2 and path.read_bytes() == whole


def test_a_failed_build_leaves_nothing_behind(places):
    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        kept("x", fail)
    assert not libraries(places)


def test_of_many_that_need_it_one_builds_the_library_and_all_get_it(places):
    makers = [Compiler(42) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert [library.answer() for library in pool.map(lambda make: kept("x", make), makers)] == [42] * 6
    assert sum(make.calls for make in makers) == 1
    late = Compiler(42)
    assert kept("x", late).answer() == 42 and late.calls == 0


def test_of_many_processes_one_builds_the_library(places, forked):
    def work() -> None:
        assert kept("x", slowly).answer() == 42

    def slowly(target: Path) -> None:
        with (places / "built").open("a") as log:
            log.write("once\n")
        time.sleep(0.3)
        Compiler(42)(target)

    assert [ended(child) for child in [forked(work) for _ in range(3)]] == [0, 0, 0]
    assert (places / "built").read_text() == "once\n"


def test_a_process_that_hangs_while_it_builds_is_not_waited_for_for_ever(places, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_S", 0.2)
    kept("y", Compiler(41))
    descriptor = os.open(places / "home" / ".cache" / "en", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert kept("x", Compiler(42)).answer() == 42
    os.close(descriptor)


def test_what_is_whole_but_not_this_library_for_this_machine_is_passed_over_and_rebuilt(places):
    kept("y", Compiler(41))
    (other,) = libraries(places)
    foreign = bytearray(other.read_bytes())
    foreign[18:20] = b"\xf3\x00"  # e_machine: RISC-V
    subprocess.run(["g++", "-x", "c", "-", "-shared", "-fPIC", "-o", "z.so"], input="int z;", text=True, check=True)
    for content in (b"#!/bin/sh\n", bytes(foreign), Path("z.so").read_bytes()):
        planted = other.with_name(f"x-{hashlib.sha256(content).hexdigest()}.so")
        planted.write_bytes(content)
        planted.chmod(0o700)
    make = Compiler(42)
    assert [kept("x", make).answer() for _ in range(2)] == [42, 42] and make.calls == 1


def test_compiling_is_said_once_in_one_line_and_what_is_kept_needs_no_compiler(places, monkeypatch, capsys):
    source = places / "work" / "source" / "small.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int answer() { return 42; }')
    assert compiled_library(source, "answer").answer() == 42
    assert capsys.readouterr().err == "en compiles small.cpp, once for this processor: about 10 s\n"
    monkeypatch.setenv("PATH", "")
    assert compiled_library(source, "answer").answer() == 42 and capsys.readouterr().err == ""
    source.write_text('extern "C" int answer() { return 43; }')
    with pytest.raises(OSError, match=r"there is no g\+\+ and no clang\+\+"):
        compiled_library(source, "answer")


@pytest.mark.parametrize("parts", plan.WORDS)
def test_the_switch_reads_the_usual_words_for_yes_and_no(parts, monkeypatch):
    for word in plan.WORDS[parts]:
        for spelt in (word, word.upper()):
            monkeypatch.setenv(kernels.SWITCH, spelt)
            assert kernels.native_parts() == parts


def test_an_unknown_word_for_the_switch_is_named_with_those_that_are_allowed_and_ignored(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "layer")
    with pytest.warns(
        RuntimeWarning, match="^EN_NATIVE='layer' is ignored: expected one of 0, .*passes.*layers, graphs, eager$"
    ):
        assert kernels.native_parts() == "layers"


@pytest.mark.parametrize("open_part", ["the cache", "the folder", "above", "a link"])
def test_a_library_planted_where_others_can_write_is_never_loaded(places, monkeypatch, open_part):
    cache = places / "shared" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    kept("x", Compiler(666))  # its name and digest are right
    culprit = {"the cache": cache, "the folder": cache / "en", "above": cache.parent, "a link": places / "elsewhere"}[
        open_part
    ]
    if open_part == "a link":
        (cache / "en").rename(culprit)
        (cache / "en").symlink_to(culprit)
    culprit.chmod(0o777)
    make = Compiler(42)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(str(culprit))} has mode 777: expected") as caught:
        assert kept("x", make).answer() == 42
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert [path.parent.parent.name for path in libraries(places) if "shared" not in str(path)][-1] == "temporary"
    with pytest.warns(RuntimeWarning, match="expected"):
        assert kept("x", make).answer() == 42
    assert make.calls == 1  # kept, for this user only


def test_a_library_that_others_can_write_is_rebuilt(places):
    kept("x", Compiler(666))
    (path,) = libraries(places)
    path.chmod(0o702)
    assert kept("x", Compiler(42)).answer() == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_library_of_another_user_is_never_loaded(places, monkeypatch):
    kept("x", Compiler(666))
    cache = places / "home" / ".cache"
    for path in (cache / "en").iterdir():
        os.chown(path, 12345, 12345)
    assert kept("x", Compiler(42)).answer() == 42
    os.chown(cache / "en", 12345, 12345)
    with pytest.warns(RuntimeWarning, match="belongs to user 12345: expected 0"):
        assert kept("x", Compiler(43)).answer() == 43
    os.chown(
        places / "home", 12345, 12345
    )  # as in a container: the home is not this user's, and there is nothing to fix
    make = Compiler(44)
    assert kept("x", make).answer() == 43 and make.calls == 0


def test_a_relative_cache_folder_is_ignored(places, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    kept("x", Compiler(42))
    assert [path.parent for path in libraries(places)] == [places / "home" / ".cache" / "en"]


@pytest.mark.parametrize("home", ["missing", "relative", "a file in the way"])
def test_without_a_writable_home_it_is_kept_in_the_temporary_folder(places, monkeypatch, home):
    if home == "a file in the way":
        (places / "home" / ".cache").touch()
    else:
        monkeypatch.setenv("HOME", str(places / "nowhere") if home == "missing" else "home")
    make = Compiler(42)
    assert [kept("x", make).answer() for _ in range(2)] == [42, 42]
    assert make.calls == 1 and len(libraries(places / "temporary")) == 1 and not (places / "nowhere").exists()


def test_without_any_safe_folder_torch_operations_are_used_with_a_warning(places, monkeypatch):
    (places / "home" / ".cache").touch()
    (places / "temporary").chmod(0o777)
    with pytest.warns(RuntimeWarning) as caught:
        assert cpu.library_or_none.__wrapped__() is None
    assert "temporary has mode 777" in str(caught[0].message) and "torch's operations" in str(caught[-1].message)
