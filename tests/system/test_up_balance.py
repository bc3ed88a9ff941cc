"""`ingest up` with its real processes: a loss in the stream is told, and a kill is none."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.roles.embedded_broker import running_broker
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from tests.support.brokers import api, joined
from tests.system.test_up import Up, children

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WAITING = 100  # messages


async def fill(service: Up, admin: BrokerConnection) -> None:
    """Post until messages wait that no writer was given.

    A writer is given 1,000 messages at most. Posts that come one after the other are one each.
    """
    ts = 1_760_000_000_000
    async with asyncio.timeout(60):
        while True:
            for _ in range(100):
                readings = [reading(ts), reading(ts + 1)]
                await service.post(readings)
                ts += 2
            info = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
            if info["num_pending"] >= WAITING:
                return


def reading(ts: int) -> dict[str, object]:
    """Return a reading of that time."""
    return {"device_id": "d", "metric": "m", "ts": ts, "value": 1}


async def of_all(service: Up, name: str) -> list[float]:
    """Return a metric of all processes."""
    found = await service.metrics()
    return [value for key, value in found.items() if key.startswith(f"{name}{{")]


async def most_removed(service: Up) -> float:
    """Return how many messages are lost, by the process that knows of most."""
    return max(await of_all(service, "ingest_stream_removed"), default=0)


async def test_purged_stream_is_a_loss_and_killed_processes_are_none(
    open_tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The messages that somebody removed are counted, as soon as the writer looks for them."""
    settings: dict[str, Any] = {
        "database_url": readings_url,
        "database_unsafe": True,
    }
    async with Up(open_tmp_path / "s", gateways=2, writers=1, **settings) as service:
        assert (await service.post(reading(1_750_000_000_000))).status == 202
        await service.wait_sample('ingest_readings_committed_total{instance="writer-1"}', 1)
        await readings_connection.execute("alter table readings rename column value to was")
        broker = running_broker(service.state_dir / "broker")
        assert broker is not None
        async with joined(lambda: broker.address("admin"), "admin") as admin:
            await fill(service, admin)
            await service.wait_state("on_hold")
            waits = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["num_pending"]
            assert (await api(admin, f"STREAM.PURGE.{STREAM}"))["success"]
        await readings_connection.execute("alter table readings rename column was to value")
        await service.wait_state("accepting")
        async with asyncio.timeout(60):
            while await most_removed(service) < waits:  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.5)
        lost = await most_removed(service)

        for pid in children(service.pid):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(2)
        await service.wait_state("accepting")
        assert (await service.post(reading(1_755_000_000_000))).status == 202
        await asyncio.sleep(5)
        assert await most_removed(service) == lost, "also after the end of those that saw it"
        assert not any(await of_all(service, "ingest_ledger_imbalance_rows"))
