"""Ports for servers that start again: outside of the clients' range, and not another user's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ingest.system import loopback
from ingest.system.loopback import has_foreign_owner
from tests.support import tcp_ports


def test_lie_outside_of_what_clients_are_given_and_differ() -> None:
    """Our ports are outside of the range that the kernel gives to clients."""
    with socket.create_server(("127.0.0.1", 0)) as chosen_by_the_kernel:
        clients_port = chosen_by_the_kernel.getsockname()[1]
        ports = [tcp_ports.free_port() for _ in range(50)]
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert first <= clients_port <= last
    assert len(set(ports)) == len(ports)
    if loopback.candidates():
        assert not [port for port in ports if first <= port <= last or port < 10_000]


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A used port is passed over; without a free one the kernel chooses."""
    taken, free = tcp_ports.free_port(), tcp_ports.free_port()
    monkeypatch.setattr(loopback, "candidates", lambda: [taken, free])
    with socket.create_server(("127.0.0.1", taken)):
        assert loopback.free_port() == free
        assert loopback.free_port({free}) not in (taken, free)


HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n"
)
ROW = "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 1\n"


@pytest.mark.parametrize(
    ("local", "state", "uid", "foreign"),
    [
        ("0100007F:1F90", "0A", 4242, True),
        ("0100007F:1F90", "01", 4242, True),
        ("00000000:1F90", "0A", 4242, True),
        ("0100007F:1F90", "0A", 0, False),  # root
        ("0100007F:1F90", "0A", os.geteuid(), False),
        ("0100007F:1F91", "0A", 4242, False),  # another port
        ("0200000A:1F90", "01", 4242, False),  # a client, at another address
        ("00000000:1F90", "01", 4242, False),
    ],
)
def test_socket_of_another_user_is_seen(
    tmp_path: Path, local: str, state: str, uid: int, foreign: bool
) -> None:
    """Who listens at our port, or has accepted our connection there, is no server of ours."""
    table = tmp_path / "tcp"
    table.write_text(HEAD + ROW.format(local=local, state=state, uid=uid))
    assert has_foreign_owner(8080, table) is foreign


def test_socket_of_our_own_is_none_of_another_user(tmp_path: Path) -> None:
    """With the real table; without one, nothing is known."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not has_foreign_owner(server.getsockname()[1])
    assert not has_foreign_owner(8080, tmp_path / "none")
