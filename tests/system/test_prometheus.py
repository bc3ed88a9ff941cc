"""A real Prometheus on the real service: every panel has data, and alerts fire in time."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.printing.documents import METRICS
from tests.support.deployment import exported, panel_queries, queries
from tests.support.tcp_ports import free_port
from tests.system.database import Database
from tests.system.prometheus import Prometheus
from tests.system.service import Service

# Alone: a test beside it that writes much would make the alarm about the disk ring.
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]

QUICK: dict[str, Any] = {"wait_s_max": 0.5, "schema_check_s": 0.3}
IN_PARTITIONS: dict[str, Any] = {"partition_span": "day", "housekeeping_pause_s": 1}
LOAD_S = 15
FIRST_US = 1_760_000_000_000_000
# Only with the embedded database the room on its disk is known.
OF_EMBEDDED = {"ingest_table_full_in_seconds"}
# Panels that have no data while there is no fault.
EMPTY_AT_PEACE = {"ingest_hold"} | OF_EMBEDDED
# This service has no certificate, and no token that ends.
UNUSED = {"ingest_certificate_ends_seconds", "ingest_tokens_end_seconds"} | OF_EMBEDDED
OF_BROKER = re.compile(r"ingest_(broker|stream|consumer|redeliveries|instance|roles|forward|mqtt)")


def _reading(number: int, **changed: Any) -> dict[str, Any]:
    made = {"device_id": f"d{number % 50}", "metric": "m", "ts": FIRST_US + number, "value": 1.5}
    return made | changed


@asynccontextmanager
async def load(service: Service) -> AsyncIterator[None]:
    """Post all the time: new readings, some sent twice, a few with a fault, a few refused."""
    numbers = itertools.count()
    stopping = asyncio.Event()

    async def post() -> None:
        for number in itertools.count():
            if stopping.is_set():
                return
            post = [_reading(next(numbers)) for _ in range(50)]
            await service.post(post)
            if number % 4 == 0:
                await service.post(post, ack="committed")
            if number % 20 == 0:
                await service.post([*post, _reading(0, value="x")])
                await service.post([_reading(0, value="x")])
            await asyncio.sleep(0.02)

    task = asyncio.create_task(post())
    try:
        yield
    finally:
        stopping.set()
        await task


async def _empty_panels(prometheus: Prometheus) -> set[str]:
    """Evaluate the queries of panels without a broker; return the metrics without data."""
    return {
        each.expr.partition("{")[0]
        for each in panel_queries()
        if not OF_BROKER.search(each.expr) and not await prometheus.query(each.expr)
    }


async def _check_exported(service: Service) -> None:
    text = (await service.request("GET", f"{service.admin_url}/metrics")).text
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ingest_")}
    assert families <= {f"ingest_{each.name}" for each in METRICS[""]}
    samples = {each.partition("{")[0] for each in await service.metrics()}
    ours = {each for each in exported() if each.startswith("ingest_")}
    assert {each for each in ours if not OF_BROKER.match(each)} - UNUSED <= samples


async def test_panels_show_the_service_and_alerts_fire_when_it_breaks(open_tmp_path: Path) -> None:
    """No alert fires under load; renamed column, dead database, dead service each fire one."""
    async with (
        Database(open_tmp_path / "db", free_port()) as database,
        Service(
            open_tmp_path / "s", database_url=database.url, **QUICK, **IN_PARTITIONS
        ) as service,
        Prometheus(
            open_tmp_path / "p", free_port(), service.admin_url.removeprefix("http://")
        ) as prometheus,
    ):
        await service.wait_state("accepting")
        async with load(service):
            await prometheus.wait_target()
            await asyncio.sleep(LOAD_S)
            assert await _empty_panels(prometheus) <= EMPTY_AT_PEACE
            for each in queries():
                await prometheus.query(each.expr)  # evaluates without an error
            assert await prometheus.firing() == {}

            await database.run("alter table readings rename column value to was")
            labels = await prometheus.wait_firing("IngestOnHold")
            assert labels["reason"] == "schema"
            await _check_exported(service)
            assert await _empty_panels(prometheus) == OF_EMBEDDED
            await database.run("alter table readings rename column was to value")
            await prometheus.wait_silent("IngestOnHold")

            await database.kill()
            labels = await prometheus.wait_firing("IngestDatabaseDown")
            assert labels["severity"] == "critical"
            await database.start()
            await prometheus.wait_silent("IngestDatabaseDown")
        code, output = await service.stop()
        assert code == 0, output
        await prometheus.wait_firing("IngestDown")
