"""The process manager: the sockets that it gives, and what is reported to it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from pathlib import Path

import pytest

from ingest.model.errors import StartError
from ingest.system import service_manager
from ingest.system.service_manager import STATUS_BYTES_MAX, Notifier, given_sockets
from tests.system.manager import Manager

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


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.system.service_manager.STATUS_S", 0.02)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Manager:
    """Give a manager that listens, on a path or in the abstract namespace."""
    abstract = f"@iot-ingest-test-{os.getpid()}-{tmp_path.name}"
    address = abstract if request.param == "abstract" else str(tmp_path / "notify")
    return Manager(address)


async def test_ready_status_and_stopping_arrive_in_order(manager: Manager) -> None:
    """Both kinds of address work; a status is sent when it changes, and only then."""
    words = "starting"
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    with manager:
        async with notifier.reporting(lambda: words):
            notifier.ready()
            await manager.wait("STATUS", "starting")
            await asyncio.sleep(0.1)  # several looks
            words = "accepting"
            await manager.wait("STATUS", "accepting")
            notifier.stopping()
        expected = [("READY", "1"), ("STATUS", "starting"), ("STATUS", "accepting")]
        assert manager.read() == [*expected, ("STOPPING", "1")]


async def test_watchdog_is_fed_at_half_its_period_and_not_by_a_loop_that_stands(
    manager: Manager,
) -> None:
    """While the event loop is blocked, no WATCHDOG=1 is sent."""
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    with manager:
        async with Notifier.from_environment(environ).reporting(lambda: "accepting"):
            await manager.wait_more("WATCHDOG", 3)
            fed = len(manager.values("WATCHDOG"))
            time.sleep(0.5)  # noqa: ASYNC251  the loop stands still
            assert len(manager.values("WATCHDOG")) == fed
            await manager.wait_more("WATCHDOG", 2)


def test_environment_is_taken_so_that_no_child_inherits_it() -> None:
    """No child gets the variables: the embedded PostgreSQL would report READY=1 for the service."""
    environ = {"NOTIFY_SOCKET": "-", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}


async def test_what_must_arrive_is_sent_again_to_a_manager_that_was_away(tmp_path: Path) -> None:
    """READY=1 is sent again until the manager, which may be restarting, has taken it."""
    address = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000"}
    notifier = Notifier.from_environment(environ)
    async with notifier.reporting(lambda: "accepting"):
        notifier.ready()
        await asyncio.sleep(0)
        with Manager(address) as manager:
            await manager.wait("STATUS", "accepting")
            assert manager.values("READY") == ["1"]


async def test_status_cannot_forge_fields_and_is_cut(manager: Manager) -> None:
    """A status with line feeds or of great length is one short line."""
    words = "on_hold: x\nMAINPID=1\r\nREADY=1 " + "é" * STATUS_BYTES_MAX
    with manager:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
        async with notifier.reporting(lambda: words):
            await manager.wait("STATUS", "on_hold")
        ((name, value),) = manager.read()
        assert name == "STATUS"
        assert value.startswith("on_hold: x MAINPID=1 READY=1 é")
        assert STATUS_BYTES_MAX - 2 < len(value.encode()) <= STATUS_BYTES_MAX
