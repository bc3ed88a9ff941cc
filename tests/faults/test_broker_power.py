"""The embedded broker loses its power: what it has acknowledged is there afterwards.

The store is on a file system that loses what was not synced. The control has the default of
nats-server: it must lose messages, or the test proves nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.embedded import server_process as embedded_server
from ingest.model.errors import BrokerAway, StartError
from ingest.roles.embedded_broker import running_broker
from ingest.roles.nats import streams
from ingest.roles.nats.protocol import STREAM
from tests.faults.lazy_disk import LazyDisk
from tests.faults.machine import NotHere
from tests.support.brokers import WANTED, api, embedded, joined, messages, put, start_parent


@pytest.fixture
async def disk(open_tmp_path: Path) -> AsyncIterator[LazyDisk]:
    """Give a mounted disk that forgets."""
    (open_tmp_path / "backing").mkdir()
    disk = LazyDisk(open_tmp_path / "backing", open_tmp_path / "disk")
    try:
        await disk.__aenter__()
    except NotHere as error:
        pytest.skip(str(error))
    yield disk
    await disk.__aexit__(None, None, None)


async def _acknowledged(folder: Path, *words: str) -> int:
    """Publish for a moment to a server in another process; kill both; return the count."""
    parent, pid = await asyncio.to_thread(start_parent, folder, *words)
    acknowledged = 0
    try:
        running = running_broker(folder)
        assert running is not None
        async with joined(lambda: running.address("admin"), "admin") as admin:
            await streams.apply(admin, WANTED)

        async def post() -> None:
            nonlocal acknowledged
            while True:
                await put(gateway, os.urandom(5_000))
                acknowledged += 1

        async with joined(lambda: running.address("gateway"), "gateway") as gateway:
            posting = [asyncio.create_task(post()) for _ in range(4)]
            await asyncio.sleep(0.4)
            os.kill(pid, signal.SIGSTOP)  # the moment of the power cut
            for each in posting:
                each.cancel()
            await asyncio.gather(*posting, return_exceptions=True)
    finally:
        os.kill(pid, signal.SIGKILL)
        parent.kill()
        parent.communicate()
    return acknowledged


async def _left(folder: Path) -> int:
    """Start the broker again; return how many messages its stream has."""
    async with embedded(folder, wanted=None) as server, joined(server, "admin") as admin:
        if "error" in await api(admin, f"STREAM.INFO.{STREAM}"):
            return 0
        return await messages(admin)


@pytest.mark.parametrize(
    "seed", [None, *(pytest.param(each, marks=pytest.mark.slow) for each in range(5))]
)
async def test_power_cut_loses_nothing_that_was_acknowledged(
    disk: LazyDisk, seed: int | None
) -> None:
    """All acknowledged messages are there, whatever else the disk has kept (a seed: some)."""
    folder = disk.mount / "broker"
    acknowledged = await _acknowledged(folder)
    assert acknowledged > 10
    await disk.power_off(seed)
    assert await _left(folder) >= acknowledged


@pytest.mark.slow
async def test_power_cut_with_the_servers_default_loses_acknowledged_messages(
    disk: LazyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without `sync_interval: always` the same test finds a loss.

    The server may even be unable to start with what is left.
    """
    monkeypatch.setattr(embedded_server, "START_S_MAX", 0.7)
    folder = disk.mount / "broker"
    acknowledged = await _acknowledged(folder, "unsynced")
    await disk.power_off(None)
    try:
        left = await _left(folder)
    except (BrokerAway, StartError):
        left = 0
    assert left < acknowledged
