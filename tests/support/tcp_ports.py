"""Ports for the servers that tests start, and start again on the same port; no port twice."""

from __future__ import annotations

from ingest.system import loopback

_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback that was free a moment ago; no port twice."""
    port = loopback.free_port(_given)
    _given.add(port)
    return port
