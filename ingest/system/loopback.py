"""The loopback: its hosts, free ports for servers of ours, and whether another user has one.

The kernel's own choice of a free port is not used. It lies in the range that the kernel gives to
clients, so a client may have the port when a server starts again. If the machine gives its clients
all ports, there is no other choice.
Does not: know ports of IPv6.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from collections.abc import Collection
from pathlib import Path

_FIRST_PORT = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_SOCKETS = Path("/proc/net/tcp")
_LISTEN = "0A"
_ANY = "00000000"
_LOOPBACK = "0100007F"  # 127.0.0.1, as a little-endian machine prints it
_HOSTS = frozenset({"localhost", "localhost."})


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine, by its address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _HOSTS


def candidates() -> list[int]:
    """Return the ports that no client gets, shuffled, since other processes choose too."""
    try:
        first, last = map(int, _RANGE.read_text().split())
    except OSError:  # no Linux
        return []
    ports = [*range(_FIRST_PORT, min(first, 65_536)), *range(max(_FIRST_PORT, last + 1), 65_536)]
    random.Random().shuffle(ports)
    return ports


def free_port(taken: Collection[int] = ()) -> int:
    """Return a TCP port of the loopback that was free a moment ago, and is none of `taken`."""
    for port in candidates():
        if port not in taken and _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def has_foreign_owner(port: int, sockets: Path = _SOCKETS) -> bool:
    """Whether another user has a socket at this port of the loopback. Root counts as one of us.

    While our server is down another user can listen there, and would be sent our password. Without
    the kernel's table (no Linux) this is not known, and the answer is no.
    """
    try:
        lines = sockets.read_text().splitlines()[1:]
    except OSError:
        return False
    at = f":{port:04X}"
    for line in lines:
        _, local, _, state, _, _, _, uid, *_ = line.split()
        # Root also owns a connection that its process has closed.
        ours = int(uid) in (os.geteuid(), 0)
        here = local == _LOOPBACK + at or (local == _ANY + at and state == _LISTEN)
        if here and not ours:
            return True
    return False
