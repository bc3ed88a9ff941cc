"""`serve` and `up` on one state folder, in turn: each takes over what the other one left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.embedded.broker import running_broker
from tests.system.service import Service, run_command
from tests.system.test_up import Up

BEGIN_MS = 1_750_000_000_000
POSTS = 30  # each with 20 readings and an invalid item
COUNT = "select count(*), count(distinct (ts, device_id, metric)) from readings"
AWAY = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"


def body(number: int) -> bytes:
    """Return a post: 20 readings of its own, and one invalid item."""
    ts = BEGIN_MS + 1_000 * number
    items: list[object] = [
        {"device_id": f"d{number}", "metric": "m", "ts": ts + each, "value": each}
        for each in range(20)
    ]
    return orjson.dumps([*items, {"device_id": number, "bad": f"item {number}"}])


async def fill(service: Service, begin: int) -> None:
    """Post, while the table cannot be written to."""
    for number in range(begin, begin + POSTS):
        reply = await service.post(body(number))
        assert reply.status == 202, reply


async def letters(state_dir: Path) -> int:
    """Return how many dead letters the command counts."""
    done = await run_command("ingest", "dlq", "stats", "--json", "--state-dir", state_dir)
    assert done.code == 0, done
    count: int = orjson.loads(done.stdout)["live"]
    return count


async def taken_back(state_dir: Path) -> None:
    """Wait until `serve` has stopped the broker: after the readings it moves the dead letters."""
    async with asyncio.timeout(20):
        while True:
            if running_broker(state_dir / "broker") is None:
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_each_takes_over_what_the_other_has_left(
    open_tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """`serve`, `up`, `serve`, with a full journal, a full stream and dead letters: all is there."""
    folder = open_tmp_path / "s"
    away: dict[str, Any] = {"database_url": AWAY, "drain_s_max": 20}
    there: dict[str, Any] = {"database_url": readings_url, "database_unsafe": True}
    async with Service(folder, **away) as service:
        await fill(service, 0)
        assert (await service.stop())[0] == 0
    assert await readings_connection.fetchval("select count(*) from readings") == 0
    async with Up(folder, **away) as service:
        await fill(service, POSTS)
        await service.wait_sample('ingest_readings_recovered_total{instance="up"}', 20 * POSTS)
        assert (await service.stop())[0] == 0
    async with Service(folder, **there) as service:
        await service.wait_sample("ingest_readings_committed_total", 40 * POSTS)
        assert await service.imbalance() == 0
        await taken_back(folder)
        assert await letters(folder) == 2 * POSTS
        await fill(service, 2 * POSTS)
    async with Up(folder, **there) as service:
        await fill(service, 3 * POSTS)
        assert await letters(folder) == 4 * POSTS
    (counts,) = await readings_connection.fetch(COUNT)
    assert tuple(counts) == (80 * POSTS, 80 * POSTS)
