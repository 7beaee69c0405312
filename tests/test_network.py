"""Ranks on several nodes: how they are reached, and what is said where they are not."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import ROOT

from en.distributed.group import process_group
from en.distributed.ranks import Ranks
from en.errors import RunError, UserError

SCRIPT = """
import torch
from en.distributed.group import process_group
from en.distributed.ranks import Ranks
from en.errors import exit_on_error

def meet():
    with process_group(Ranks.from_environment(), torch.device("cpu"), 30):
        print("met")

exit_on_error(meet)
"""
LIMIT_S = 60


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[list[str]]]:
    """The beginnings of commands on each of two hosts, whose names stand for 127.0.1.1 there, as Debian has it.

    They are network namespaces, joined by a cable between the interfaces cable0 and cable1.
    """
    names = [f"en{os.getpid()}{side}" for side in "ab"]
    begin = []
    try:
        for number, name in enumerate(names):
            known = tmp_path / f"hosts{number}"
            known.write_text(f"127.0.1.1 node{number}\n10.93.0.{2 - number} node{1 - number}\n")
            enter = f'mount --bind {known} /etc/hosts && hostname node{number} && exec "$@"'
            begin.append(["ip", "netns", "exec", name, "unshare", "-um", "bash", "-c", enter, "_"])
        try:
            for name in names:
                system("netns", "add", name)
                system("-n", name, "link", "set", "lo", "up")
            system("-n", names[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", names[1])
            for number, name in enumerate(names):
                system("-n", name, "addr", "add", f"10.93.0.{1 + number}/24", "dev", f"cable{number}")
                system("-n", name, "link", "set", f"cable{number}", "up")
            subprocess.run([*begin[0], "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs iproute2 and the right to make network namespaces: {error}")
        yield begin
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def system(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def meet(hosts: list[list[str]], *own: dict[str, str]) -> list[str]:
    """Has a rank on each host meet the other, in an environment of its own.

    Returns: what each printed until one failed.
    Raises: AssertionError where neither ends.
    """
    shared = {"MASTER_ADDR": "10.93.0.1", "MASTER_PORT": "29513", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([*host, sys.executable, "-c", SCRIPT], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env={**os.environ, **shared, "RANK": str(rank), **own[rank]})
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    end = time.monotonic() + LIMIT_S
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < end:
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
    assert any(code is not None for code in codes)
    return [rank.communicate()[0] for rank in ranks]


def test_hosts_whose_names_stand_for_their_loopback_are_told_the_interface_and_the_variable_that_let_them_meet(hosts):
    said = "".join(meet(hosts, {}, {}))
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "did not meet the others" in line and "remote=[127.0.1.1]" in line and "Traceback" not in said
    number = re.search("on node([01])", line)[1]
    assert f"node{number} stands for 127.0.1.1 here" in line and f"cable{number} (10.93.0.{1 + int(number)})" in line
    assert "expected GLOO_SOCKET_IFNAME in each node's environment" in line
    chosen = meet(hosts, {"GLOO_SOCKET_IFNAME": "cable0"}, {"GLOO_SOCKET_IFNAME": "cable1"})
    assert [said.splitlines()[-1] for said in chosen] == ["met", "met"]


def test_an_interface_that_is_not_there_and_a_first_node_that_is_not_are_one_line_each(monkeypatch):
    here = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "29513", "WORLD_SIZE": "2", "RANK": "1"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)

    def join() -> None:
        with process_group(Ranks.from_environment(), torch.device("cpu"), 2):
            raise AssertionError("joined")

    with pytest.raises(RunError, match=r"rank 1 on .* did not meet the others: .*; MASTER_ADDR=nowhere.invalid"):
        join()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    with pytest.raises(UserError, match=r"^GLOO_SOCKET_IFNAME='eth77' in the environment: .* has no interface 'eth77'"):
        join()
