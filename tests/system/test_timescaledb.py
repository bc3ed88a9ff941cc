"""Hypertables of TimescaleDB, which a user has made of our tables, on Debian's PostgreSQL.

Debian's package is the Apache edition: it has chunks and `drop_chunks`, and no compression.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.partitions import DAY, DAY_US
from ingest.sinks.postgres.housekeeping.runs import Did
from ingest.sinks.postgres.housekeeping.table_state import HYPERTABLE, look_at
from ingest.years.retention import Chunks, Policy, Retention
from tests.faults.server import DEBIAN, Server
from tests.system.database import Database
from tests.system.service import Service, run_command

KEEP = Policy(2 * DAY_US, "2d")
LOADED = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
EXTENSION = Path("/usr/share/postgresql/17/extension/timescaledb.control")
NO_APACHE = "not supported under the current .apache. license"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not EXTENSION.exists(), reason="no TimescaleDB: apt-get install postgresql-17-timescaledb"
    ),
]


@pytest.fixture
async def server(
    open_tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    """Give a server whose database has the extension."""
    monkeypatch.setattr(Database, "template", None)  # that data is of another version
    async with Server(open_tmp_path / "db", free_port, None, LOADED, DEBIAN) as started:
        await started.run("create extension timescaledb")
        yield started


async def run(connection: asyncpg.Connection, policy: Policy, *, yes: bool = False) -> list[Did]:
    """Do what is due."""
    view = await look_at(connection, "readings", DAY)
    assert view.kind == HYPERTABLE
    return await runs.do_due(connection, view, [Retention(policy), Chunks(policy)], yes=yes)


async def test_old_chunks_are_dropped_after_a_yes(server: Server) -> None:
    """One step for all of them. It is no table of ours: no partition is made, nothing archived."""
    connection = await asyncpg.connect(server.url_of_superuser)
    await schema.apply(connection)
    await connection.execute(
        "select create_hypertable('readings', 'ts', chunk_time_interval => interval '1 day'); "
        "insert into readings select now() - n * interval '1 day', 'd', 'm', 1 "
        "from generate_series(0, 9) n"
    )
    (waiting,) = await run(connection, KEEP)
    assert "7 of 10 partitions" in waiting.left
    (cold,) = await run(connection, KEEP._replace(archive_dir="/cold"), yes=True)
    assert "a hypertable is not archived" in cold.error
    assert await connection.fetchval("select count(*) from readings") == 10
    (done,) = await run(connection, KEEP, yes=True)
    assert done.error == ""
    assert await connection.fetchval("select count(*) from readings") == 3
    assert await run(connection, KEEP) == []
    with pytest.raises(asyncpg.FeatureNotSupportedError, match=NO_APACHE):
        await connection.execute("alter table readings set (timescaledb.compress)")
    await connection.close()


class Fleet:
    """A service on that server, and all that was posted to it.

    Each post has for some devices the values of one moment, so many days ago.
    """

    def __init__(self, server: Server, service: Service) -> None:
        self.server, self.service = server, service
        self.posted = set[tuple[str, int, str, float]]()
        self._now_ms = int(time.time() * 1000)

    def items(self, days: float, devices: Sequence[str] = ("a", "b", "c")) -> list[dict[str, Any]]:
        """Return the items of a post."""
        ts_ms = self._now_ms - int(days * 86_400_000)
        values = {"temperature": 20.5 + days, "humidity": 0.25, "noise": days}
        return [{"device_id": each, "ts": ts_ms, "values": values} for each in devices]

    async def post(self, items: list[dict[str, Any]], ack: str = "committed") -> None:
        """Post, and remember the facts."""
        answer = await self.service.post(items, ack=ack)
        assert (answer.status, answer.document["accepted"]) in ((200, 3 * len(items)), (202, 9))
        for each in items:
            for metric, value in each["values"].items():
                self.posted.add((each["device_id"], each["ts"], metric, value))

    async def check(self, gone: str = "") -> None:
        """Each fact is there exactly once, but for those of a device."""
        await self.service.wait_quiet()
        rows = await self.server.run(
            "select device_id, (extract(epoch from ts) * 1000)::int8, metric, value from readings"
        )
        kept = {each for each in self.posted if each[0] != gone}
        assert sorted(map(tuple, rows)) == sorted(kept)
        assert await self.service.imbalance() == 0

    async def chunks(self, table: str) -> int:
        """Return how many chunks a table has."""
        (row,) = await self.server.run(f"select count(*) from show_chunks('{table}')")
        return int(row[0])


async def test_each_reading_is_stored_once_in_hypertables_whatever_happens(
    server: Server, open_tmp_path: Path
) -> None:
    """Late ones, repeated ones, refused ones; chunks are dropped; both ends are killed."""
    tables = ["readings"]
    settings: dict[str, Any] = {
        "database_url": server.url,
        "wait_s_max": 0.5,
        "late_days_max": 20_000,
    }
    state = open_tmp_path / "state"
    async with Service(state, **settings) as service:
        fleet = Fleet(server, service)
        await service.wait_state("accepting")
        await fleet.post(fleet.items(0))
        for table in tables:
            # While the service runs, as the owner of the table, which has rows.
            await service.query(
                f"select create_hypertable('{table}', by_range('ts', interval '1 day'), "
                "migrate_data => true, create_default_indexes => false)"
            )
        for days in (0.01, 1, 40, 40.01, 9_000):  # new chunks, and one that is there
            await fleet.post(fleet.items(days))
        await fleet.check()
        assert [await fleet.chunks(table) for table in tables] == [4 for _ in tables]
        for _ in range(2):  # the second time by the idempotent path
            await fleet.post([each for days in (0, 1, 40) for each in fleet.items(days)])
        samples = await service.metrics()
        assert samples["ingest_readings_duplicate_total"] == 54
        await fleet.check()

        # A constraint: one device of several, in an old chunk and in a new one
        for table in tables:
            await service.query(f"alter table {table} add check (device_id <> 'bad')")
        for days in (40.02, 41):
            answer = await service.post(fleet.items(days, ["bad"]))
            assert answer.status == 202
            await fleet.post(fleet.items(days))
        await service.wait_sample("ingest_dlq_readings", 6)
        await fleet.check()

        # The server is killed, then the service
        await server.kill_all()
        await fleet.post(fleet.items(40.03), ack="durable")
        await fleet.post(fleet.items(0.02), ack="durable")
        await server.come_back()
        await service.wait_state("accepting", within_s=60)
        await fleet.check()
        await server.kill_all()
        await fleet.post(fleet.items(42), ack="durable")
        await service.kill()
        await server.come_back()
        await service.start()
        await service.wait_state("accepting", within_s=60)
        await fleet.check()
        await fleet.post([each for days in (40.03, 0.02, 42) for each in fleet.items(days)])
        await fleet.check()

        # Old chunks are dropped by their owner; what is sent again is stored again
        for table in tables:
            await service.query(f"select drop_chunks('{table}', interval '30 days')")
            assert await fleet.chunks(table) == 2
        old = {each for each in fleet.posted if each[1] < time.time() * 1000 - 30 * 86_400_000}
        fleet.posted -= old
        await fleet.check()
        await fleet.post(fleet.items(40))
        await fleet.check()

    at = ["--database-url", server.url, "--state-dir", state]
    shown = await run_command("ingest", "schema", "show", *at)
    assert (shown.code, "as the service expects it" in shown.stdout) == (0, True)
    status = await run_command("ingest", "housekeeping", "status", "--json", *at)
    assert json.loads(status.stdout)["kind"] == HYPERTABLE
