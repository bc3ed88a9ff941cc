"""A hypertable of TimescaleDB, on Debian's PostgreSQL: its old chunks are dropped, no more."""

from __future__ import annotations

from pathlib import Path

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

KEEP = Policy(2 * DAY_US, "2d")
LOADED = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
EXTENSION = Path("/usr/share/postgresql/17/extension/timescaledb.control")


async def run(connection: asyncpg.Connection, policy: Policy, *, yes: bool = False) -> list[Did]:
    """Do what is due."""
    view = await look_at(connection, "readings", DAY)
    assert view.kind == HYPERTABLE
    return await runs.do_due(connection, view, [Retention(policy), Chunks(policy)], yes=yes)


@pytest.mark.slow
@pytest.mark.skipif(
    not EXTENSION.exists(), reason="no TimescaleDB: apt-get install postgresql-17-timescaledb"
)
async def test_old_chunks_are_dropped_after_a_yes(
    open_tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step for all of them. It is no table of ours: no partition is made, nothing archived."""
    monkeypatch.setattr(Database, "template", None)  # that data is of another version
    async with Server(open_tmp_path / "db", free_port, None, LOADED, DEBIAN) as server:
        connection = await asyncpg.connect(server.url_of_superuser)
        await connection.execute("create extension timescaledb")
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
        await connection.close()
