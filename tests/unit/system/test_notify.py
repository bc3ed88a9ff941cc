"""Notifications to the process manager: what is sent, when, and what is never sent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ingest.system.notify import STATUS_BYTES_MAX, Notifier
from tests.system.manager import Manager


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.system.notify.STATUS_S", 0.02)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Manager:
    """Give a manager that listens, on a path or in the abstract namespace."""
    abstract = f"@iot-ingest-test-{os.getpid()}-{tmp_path.name}"
    address = abstract if request.param == "abstract" else str(tmp_path / "notify")
    return Manager(address)


def test_watchdog_is_sent_at_half_its_period(manager: Manager) -> None:
    """With a period of 8 s, it is sent every 4 s. The test sets the time."""
    notifier = Notifier.from_environment(
        {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "8000000"}
    )
    fed: list[int] = []
    with manager:
        for now_s in range(20):
            before = len(manager.values("WATCHDOG"))
            notifier._report_once("accepting", float(now_s))
            if len(manager.values("WATCHDOG")) > before:
                fed.append(now_s)
        notifier.close()
    assert fed == [0, 4, 8, 12, 16]


@pytest.mark.parametrize(
    "period",
    [
        {},
        {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
    ids=["none", "of another process", "no number", "nought"],
)
async def test_watchdog_of_nobody_is_not_fed(manager: Manager, period: dict[str, str]) -> None:
    """Without a period for this process no WATCHDOG=1 is sent."""
    environ = {"NOTIFY_SOCKET": manager.address, **period}
    with manager:
        async with Notifier.from_environment(environ).reporting(lambda: "accepting"):
            await manager.wait("STATUS", "accepting")
            await asyncio.sleep(0.25)
        assert manager.values("WATCHDOG") == []


async def test_watchdog_of_this_process_is_fed(manager: Manager) -> None:
    """A period with the id of this process counts."""
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}
    environ["WATCHDOG_PID"] = str(os.getpid())
    with manager:
        async with Notifier.from_environment(environ).reporting(lambda: "accepting"):
            await manager.wait("WATCHDOG", "1")


def test_environment_is_taken_so_that_no_child_inherits_it() -> None:
    """No child gets the variables: the embedded PostgreSQL would report READY=1 for the service."""
    environ = {"NOTIFY_SOCKET": "-", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nobody/listens/here"])
async def test_nobody_who_listens_is_no_fault(address: str) -> None:
    """Without a process manager nothing is sent and nothing fails."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    async with notifier.reporting(lambda: "accepting"):
        notifier.ready()
        await asyncio.sleep(0.01)
        notifier.stopping()


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
