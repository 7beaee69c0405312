"""How this node's ranks are reached by those of others, and what is to be done where they are not."""

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from en.errors import RunError, UserError, shown

INTERFACE = "GLOO_SOCKET_IFNAME"
ADDRESS_OF = 0x8915  # SIOCGIFADDR of ioctl
NAMED = 8  # interfaces


def interfaces() -> dict[str, str]:
    """The IPv4 addresses of this node by their interfaces, those without one and the loopback left out."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found[name] = address
    return found


def in_words(found: dict[str, str]) -> str:
    """Interfaces with their addresses, as a message shows them."""
    return " or ".join(f"{name} ({address})" for name, address in list(found.items())[:NAMED]) or "none"


def refuse_unknown_interface() -> None:
    """Raises UserError where the variable that chooses gloo's interface names one that this node lacks."""
    wanted = os.environ.get(INTERFACE, "")
    known = {name for _, name in socket.if_nameindex()}
    if missing := [name for name in wanted.split(",") if wanted and name not in known]:
        raise UserError(
            f"{INTERFACE}={shown(wanted)} in the environment: {socket.gethostname()} has no interface "
            f"{shown(missing[0])}: expected {in_words(interfaces())}"
        )


def own_address() -> str:
    """Returns the address that this node's name stands for, by which gloo has others reach it; empty for none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


@contextmanager
def naming_unreachable_ranks(rank: int, several_nodes: bool) -> Iterator[None]:
    """Turns the failure of ranks to meet into one line that names the interfaces, and the variable that chooses.

    Raises: UserError where a node's name stands for its loopback, as Debian's /etc/hosts has it; else RunError.
    """
    refuse_unknown_interface()
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"\[/[^\]]*\] ", "", (str(error).strip().splitlines() or [type(error).__name__])[0])
        host, address = socket.gethostname(), own_address()
        failed = f"rank {rank} on {host} did not meet the others: {reason[:300]}"
        looped = INTERFACE not in os.environ and (not address or address.startswith("127."))
        if not several_nodes or "gloo" not in reason.lower() or not (looped or "remote=[127." in reason):
            raise RunError(f"{failed}; MASTER_ADDR={os.environ.get('MASTER_ADDR')}, {host} is {address}") from error
        name = f"{host} stands for {address or 'no address'} here" if looped else "a node has told its loopback"
        raise UserError(
            f"{failed}: {name}, where no other node finds it: expected {INTERFACE} in each node's environment, its "
            f"interface to the others, of this one {in_words(interfaces())}"
        ) from error
