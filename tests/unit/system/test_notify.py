"""Notifications to the process manager: what is sent, when, and what is never sent."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from ingest.system.service_manager import STATUS_BYTES_MAX, Notifier
from tests.system.manager import Manager


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
