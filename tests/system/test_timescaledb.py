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

from ingest.model.errors import StartError
from ingest.sinks.postgres import schema
from ingest.sinks.postgres.housekeeping import runs
from ingest.sinks.postgres.housekeeping.partitions import DAY, DAY_US
from ingest.sinks.postgres.housekeeping.runs import Did
from ingest.sinks.postgres.housekeeping.table_state import HYPERTABLE, look_at
from ingest.years.retention import Chunks, Policy, Retention
from tests.faults.server import DEBIAN, Server
from tests.support.documents import DOCUMENTS, fences
from tests.system.database import Database
from tests.system.service import Service, run_command

Item = dict[str, Any]

DAY_MS = DAY_US // 1000
KEEP = Policy(2 * DAY_US, "2d")
DECLARED = """
[[table]]
name = "climate"
metrics = ["temperature", "humidity"]
since = 2000-01-01T00:00:00Z
"""
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
    page = fences(DOCUMENTS["docs/run/database.md"])
    (made,) = (each.text for each in page if "create_hypertable" in each.text)
    await connection.execute(
        f"{made}; insert into readings select now() - n * interval '1 day', 'd', 'm', 1 "
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


async def test_version_that_loses_late_readings_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edition here has no compression: the catalog of the extension says that it is used."""
    connection = await asyncpg.connect(server.url_of_superuser)
    await schema.apply(connection)
    await connection.execute("select create_hypertable('readings', by_range('ts'))")
    monkeypatch.setattr(schema, "_TIMESCALEDB_MIN", (9, 0, 1))
    assert (await schema.look(connection)).difference is None
    await connection.execute("update _timescaledb_catalog.hypertable set compression_state = 1")
    with pytest.raises(StartError, match=r"late readings in it: update it to 9\.0\.1 or later"):
        await schema.apply(connection)
    monkeypatch.undo()
    assert (await schema.look(connection)).difference is None
    await connection.close()


class Fleet:
    """A service on that server, and all that was posted to it.

    Each item has three values of one moment, so many days ago: two of a declared table.
    """

    tables = ("readings", "climate")

    def __init__(self, server: Server, service: Service) -> None:
        self.server, self.service = server, service
        self.posted = set[tuple[str, int, str, float]]()
        now_ms = int(time.time() * 1000)
        self._now_ms = now_ms - now_ms % DAY_MS - DAY_MS // 2  # noon: each chunk is a day

    def items(self, *days: float, devices: Sequence[str] = "abc", more: float = 0.0) -> list[Item]:
        """Return the items of a post."""
        return [
            {
                "device_id": device,
                "ts": self._now_ms - int(each * DAY_MS),
                "values": {"temperature": 20.5 + each + more, "humidity": 0.25, "noise": each},
            }
            for each in days
            for device in devices
        ]

    async def post(self, items: list[Item], ack: str = "committed") -> None:
        """Post, and remember the facts."""
        answer = await self.service.post(items, ack=ack)
        assert answer.status == (200 if ack == "committed" else 202)
        assert answer.document["accepted"] == 3 * len(items)
        for each in items:
            for metric, value in each["values"].items():
                self.posted.add((each["device_id"], each["ts"], metric, value))

    async def check(self, *chunks: int) -> None:
        """Each fact is there exactly once. `chunks`: how many each table has."""
        await self.service.wait_state("accepting", within_s=60)
        await self.service.wait_quiet()
        rows = await self.server.run(
            "select device_id, (extract(epoch from ts) * 1000)::int8, metric, value "
            "from all_readings"
        )
        assert sorted(map(tuple, rows)) == sorted(self.posted)
        assert await self.service.imbalance() == 0
        for table in self.tables if chunks else ():
            (row,) = await self.server.run(f"select count(*) from show_chunks('{table}')")
            assert (table, row[0]) == (table, *chunks)

    async def of_each(self, sql: str) -> None:
        """Run this for each table, as their owner."""
        for table in self.tables:
            await self.service.query(sql.format(table))

    async def refuse(self) -> None:
        """Let a constraint refuse one device of several, in an old chunk and in a new one."""
        await self.of_each("alter table {} add check (device_id <> 'bad')")
        for days in (40.02, 41):
            answer = await self.service.post(self.items(days, devices=["bad"]))
            assert answer.status == 202
            await self.post(self.items(days))
        await self.service.wait_sample("ingest_dlq_readings", 6)

    async def kill_both(self) -> None:
        """Kill the server, then both."""
        await self.server.kill_all()
        for days in (40.03, 0.02):
            await self.post(self.items(days), ack="durable")
        await self.server.come_back()
        await self.check()
        await self.server.kill_all()
        await self.post(self.items(42), ack="durable")
        await self.service.kill()
        await self.server.come_back()
        await self.service.start()
        await self.check()
        await self.post(self.items(40.03, 0.02, 42))

    def forget(self, days: float) -> float:
        """Expect nothing that is so old; return its time in seconds."""
        from_ms = self._now_ms - days * DAY_MS
        self.posted = {each for each in self.posted if each[1] > from_ms}
        return from_ms / 1000


async def test_each_reading_is_stored_once_in_hypertables_whatever_happens(
    server: Server, open_tmp_path: Path
) -> None:
    """Late, repeated, differing and refused ones; both ends are killed; chunks are dropped."""
    declared = open_tmp_path / "tables.toml"
    declared.write_text(DECLARED)
    settings: dict[str, Any] = {"database_url": server.url, "tables_file": declared}
    state = open_tmp_path / "state"
    at = ["--database-url", server.url, "--state-dir", state, "--tables-file", declared]
    async with Service(state, wait_s_max=0.5, **settings) as service:
        fleet = Fleet(server, service)
        await service.wait_state("accepting")
        await fleet.post(fleet.items(0))
        # While the service runs, of tables that have rows
        await fleet.of_each(
            "select create_hypertable('{}', by_range('ts', interval '1 day'), "
            "migrate_data => true, create_default_indexes => false)"
        )
        for days in (0.01, 1, 40, 40.01, 9_000):  # new chunks, and one that is there
            await fleet.post(fleet.items(days))
        await fleet.check(4)
        for _ in range(2):  # the second time by the idempotent path
            await fleet.post(fleet.items(0, 1, 40))
        assert (await service.metrics())["ingest_readings_duplicate_total"] == 54
        await fleet.post(fleet.items(40, more=1.0))  # other values: in `readings`
        await fleet.check(4)
        await fleet.refuse()
        await fleet.check(5)
        await fleet.kill_both()
        await fleet.check(6)
        older_s = fleet.forget(41.5)
        await fleet.of_each(f"select drop_chunks('{{}}', older_than => to_timestamp({older_s}))")
        await fleet.check(4)
        dropped = await run_command("ingest", "housekeeping", "run", "--yes", "--keep-hot=30d", *at)
        assert dropped.stdout.count(": done") == 2, dropped
        fleet.forget(30)
        await fleet.check(2)
        await fleet.post(fleet.items(40))  # what is sent again is stored again
        await fleet.check(3)
    shown = await run_command("ingest", "schema", "show", *at)
    assert (shown.code, shown.stdout.count("as the service expects it")) == (0, 2)
    status = json.loads(
        (await run_command("ingest", "housekeeping", "status", "--json", *at)).stdout
    )
    assert [each["kind"] for each in (status, *status["declared"])] == [HYPERTABLE] * 2
