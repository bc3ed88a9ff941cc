"""Sockets of a process manager: which are taken for which port, and which are refused."""

from __future__ import annotations

import fcntl
import os
import socket

import pytest

from ingest.model.errors import StartError
from ingest.system import service_manager
from ingest.system.service_manager import given_sockets

FIRST_FD = 700  # in place of 3, which is in use here


def given(monkeypatch: pytest.MonkeyPatch, names: str, *opened: socket.socket) -> dict[str, str]:
    """Put the sockets where a manager puts them; return its variables, and one of others."""
    monkeypatch.setattr(service_manager, "FIRST_FD", FIRST_FD)
    for each in opened:
        with each:
            os.set_inheritable(fcntl.fcntl(each, fcntl.F_DUPFD, FIRST_FD), True)
    told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(opened))}
    return told | {"LISTEN_FDNAMES": names, "HOME": "/"}


def test_sockets_are_taken_by_name_and_no_child_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin port has its name; all others are the data port's. The variables are removed."""
    hosts = (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET))
    opened = [socket.create_server((host, 0), family=family) for host, family in hosts]
    variables = given(monkeypatch, "it.socket:it.socket:admin", *opened)
    found = given_sockets(variables)
    assert [each.family for each in found.data] == [socket.AF_INET, socket.AF_INET6]
    assert len(found.admin) == 1
    for each in (*found.data, *found.admin):
        assert not each.get_inheritable()
        each.close()
    assert variables == {"HOME": "/"}
    for pid in ("", "1", "x"):  # a shell that the manager started may have handed them on
        assert given_sockets({"LISTEN_PID": pid, "LISTEN_FDS": "9"}) == ([], [])


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_what_is_no_listening_tcp_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily
) -> None:
    """The error names it, and says what the unit must have. So is what is no number."""
    opened = socket.socket(family)
    if family == socket.AF_UNIX:
        opened.bind("")
        opened.listen()
    with pytest.raises(StartError, match=r"mine .* ListenStream="):
        given_sockets(given(monkeypatch, "mine", opened))
    with pytest.raises(StartError, match=r"mine .* is no socket"):  # it is closed by now
        given_sockets(given(monkeypatch, "mine") | {"LISTEN_FDS": "1"})
    with pytest.raises(StartError, match="'many'"):
        given_sockets(given(monkeypatch, "mine") | {"LISTEN_FDS": "many"})
