"""Ports for the servers that tests start, and start again on the same port.

The kernel's own choice of a free port is not used. It lies in the range that the kernel gives to
clients, so a client may have the port when a killed server starts again. If the machine gives its
clients all ports, there is no other choice.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 10_000
_given: set[int] = set()


def _candidates() -> list[int]:
    """Return the ports that no client gets, shuffled, since other test processes choose too."""
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first, last = map(int, text.split())
    ports = [*range(FIRST, min(first, 65_536)), *range(max(FIRST, last + 1), 65_536)]
    random.Random().shuffle(ports)
    return ports


def free_port() -> int:
    """Return a TCP port of the loopback that was free a moment ago; no port twice."""
    for port in _candidates():
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        chosen: int = probe.getsockname()[1]
        return chosen
