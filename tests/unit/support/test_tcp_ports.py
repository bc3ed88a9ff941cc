"""Ports for servers that start again: outside of the clients' range, and none twice."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support import tcp_ports


def test_lie_outside_of_what_clients_are_given_and_differ() -> None:
    """Our ports are outside of the range that the kernel gives to clients."""
    with socket.create_server(("127.0.0.1", 0)) as chosen_by_the_kernel:
        clients_port = chosen_by_the_kernel.getsockname()[1]
        ports = [tcp_ports.free_port() for _ in range(50)]
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert first <= clients_port <= last
    assert len(set(ports)) == len(ports)
    if tcp_ports._candidates():
        assert not [port for port in ports if first <= port <= last or port < tcp_ports.FIRST]


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A used port is passed over; without a free one the kernel chooses."""
    taken, free = tcp_ports.free_port(), tcp_ports.free_port()
    monkeypatch.setattr(tcp_ports, "_candidates", lambda: [taken, free])
    monkeypatch.setattr(tcp_ports, "_given", set())
    with socket.create_server(("127.0.0.1", taken)):
        assert tcp_ports.free_port() == free
        assert tcp_ports.free_port() not in (taken, free)
