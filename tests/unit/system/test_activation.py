"""Sockets of a process manager: which are taken for which port, and which are refused."""

from __future__ import annotations

import fcntl
import os
import socket

import pytest

from ingest.model.errors import StartError
from ingest.system import activation
from ingest.system.activation import given_sockets

FIRST_FD = 700  # in place of 3, which is in use here


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give the variables for no socket yet."""
    monkeypatch.setattr(activation, "FIRST_FD", FIRST_FD)
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "HOME": "/"}


def give(variables: dict[str, str], name: str, *opened: socket.socket) -> None:
    """Add sockets of this name."""
    for each in opened:
        with each:
            os.set_inheritable(fcntl.fcntl(each, fcntl.F_DUPFD, FIRST_FD), True)
        variables["LISTEN_FDS"] = str(int(variables["LISTEN_FDS"]) + 1)
        known = variables.get("LISTEN_FDNAMES")
        variables["LISTEN_FDNAMES"] = name if known is None else f"{known}:{name}"


def server(host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket."""
    return socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    )


def test_sockets_are_taken_by_name_and_no_child_gets_them(variables: dict[str, str]) -> None:
    """The admin port has its name; all others are the data port's. The variables are removed."""
    give(variables, "iot-ingest.socket", server(), server("::1"))
    give(variables, "admin", server())
    given = given_sockets(variables)
    try:
        assert [each.family for each in given.data] == [socket.AF_INET, socket.AF_INET6]
        assert len(given.admin) == 1
        assert not any(each.get_inheritable() for each in (*given.data, *given.admin))
        assert variables == {"HOME": "/"}
    finally:
        for each in (*given.data, *given.admin):
            each.close()


@pytest.mark.parametrize("pid", ["", "1", "x"])
def test_sockets_of_another_process_are_not_taken(variables: dict[str, str], pid: str) -> None:
    """A shell that the manager started may have handed the variables on."""
    assert given_sockets({"LISTEN_PID": pid, "LISTEN_FDS": "9"}) == ([], [])
    assert given_sockets({}) == given_sockets(variables) == ([], [])


@pytest.mark.parametrize("what", ["of Unix", "UDP", "connected", "closed", "number"])
def test_what_is_no_listening_tcp_socket_is_refused(variables: dict[str, str], what: str) -> None:
    """The error names it, and says what the unit must have."""
    if what == "of Unix":
        opened = socket.socket(socket.AF_UNIX)
        opened.bind("")
        opened.listen()
    elif what == "UDP":
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        with server() as listening:
            opened = socket.create_connection(listening.getsockname())
    give(variables, "mine", opened)
    if what == "closed":
        os.close(FIRST_FD)
    if what == "number":
        variables["LISTEN_FDS"] = "many"
    with pytest.raises(StartError, match="LISTEN_FDS is 'many'" if what == "number" else "mine"):
        given_sockets(variables)
