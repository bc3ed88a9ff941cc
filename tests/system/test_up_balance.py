"""`ingest up` with its real processes: the balance between gateways and writers, at a real loss."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.broker.connection import BrokerConnection
from ingest.broker.roles import STREAM, WRITER
from ingest.embedded.broker import running_broker
from tests.support.brokers import api, joined
from tests.system.test_up import Up, children

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROWS = "ingest_roles_imbalance_rows"
WAITING = 100  # messages


async def fill(service: Up, admin: BrokerConnection) -> int:
    """Post until messages wait that no writer was given; return the readings that were kept.

    A writer is given 1,000 messages at most. Posts that come one after the other are one each.
    """
    kept, ts = 0, 1_760_000_000_000
    async with asyncio.timeout(60):
        while True:
            for _ in range(100):
                readings = [reading(ts), reading(ts + 1)]
                kept += 2 * ((await service.post(readings)).status == 202)
                ts += 2
            info = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
            if info["num_pending"] >= WAITING:
                return kept


def reading(ts: int) -> dict[str, object]:
    """Return a reading of that time."""
    return {"device_id": "d", "metric": "m", "ts": ts, "value": 1}


async def of_all(service: Up, name: str) -> float:
    """Return the sum of a metric over all processes."""
    found = await service.metrics()
    return sum(value for key, value in found.items() if key.startswith(f"{name}{{"))


async def test_purged_stream_is_an_imbalance_and_a_killed_writer_is_none(
    open_tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The readings that somebody removed are counted exactly, as soon as nothing else waits."""
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
            kept = 1 + await fill(service, admin)
            await service.wait_state("on_hold")
            await asyncio.sleep(3)  # two looks at the stream
            assert await of_all(service, ROWS) == 0
            waits = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["num_pending"]
            assert (await api(admin, f"STREAM.PURGE.{STREAM}"))["success"]
        await readings_connection.execute("alter table readings rename column was to value")
        await service.wait_state("accepting")
        async with asyncio.timeout(60):
            while not (lost := await of_all(service, ROWS)):  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.5)
        stored = await readings_connection.fetchval("select count(*) from readings")
        assert lost == kept - stored, "exactly what is missing in the table"
        assert lost >= waits
        assert await of_all(service, "ingest_stream_skipped_total") >= waits

        for pid in children(service.pid):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(2)
        await service.wait_state("accepting")
        assert (await service.post(reading(1_755_000_000_000))).status == 202
        await asyncio.sleep(10)
        assert await of_all(service, ROWS) == lost
        assert await of_all(service, "ingest_ledger_imbalance_rows") == 0
