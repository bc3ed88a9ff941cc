"""The archive's rests, and its one snapshot of many parts; with a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest

from ingest.sinks.postgres.connection import Expired, Timeouts, opened_as
from ingest.sinks.postgres.housekeeping import registry
from ingest.years.archive import archiver, table_rows
from ingest.years.archive.archiver import REST_S_MAX, Pace, ParquetArchiver
from ingest.years.archive.files import ArchiveFailed, ArchiveFolder
from ingest.years.archive.table_rows import RowsTable
from tests.support.archives import PARTITION, detached, drawn, fill, rows_in_files, store

TIMEOUTS = Timeouts(5.0, 3.0, 10.0, 20.0, 60.0)


@pytest.fixture
async def table(operator: asyncpg.Connection) -> asyncpg.Connection:
    """Give a connection to a database with the table and its registry."""
    await registry.make(operator, "readings")
    return operator


async def test_it_rests_in_each_phase_if_others_need_the_processors(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each piece: one of the COPY, one that was merged, one of the new file."""
    rests: list[float] = []
    rows = drawn(2_000, 7)
    await fill(table, PARTITION, rows)
    monkeypatch.setattr(archiver, "thread_cpu_s", lambda: 0.0)
    monkeypatch.setattr(archiver, "sleep", rests.append)
    kept = ParquetArchiver(ArchiveFolder(tmp_path))
    await kept.archive(detached(table))
    assert len(rests) == 3
    assert all(0 < each <= REST_S_MAX for each in rests)
    assert sorted(rows_in_files([tmp_path / f"{PARTITION}.parquet"])) == sorted(rows)


async def test_parts_have_the_checksum_of_the_whole_table(
    table: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one block each. A table without rows is one part."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 1)
    took_s: list[float] = []

    async def pause(seconds: float) -> None:
        took_s.append(seconds)

    for count, parts_min in ((0, 1), (500, 10)):
        name = f"{PARTITION}_{count}"
        await fill(table, name, drawn(count, 8))
        took_s.clear()
        named = RowsTable("public", name)
        found = await table_rows.checksum(table, named)
        assert await table_rows.checksum(table, named, pause) == found
        assert found[0] == count
        assert len(took_s) >= parts_min


async def test_stop_ends_the_sum_of_a_table_after_one_part(
    table: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a merge nothing else is done meanwhile that would notice the stop."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 1)
    rests: list[float] = []
    rows = drawn(500, 9)
    await fill(table, PARTITION, rows[:490])
    await ParquetArchiver(ArchiveFolder(tmp_path)).archive(detached(table))
    await store(table, PARTITION, rows[490:])
    monkeypatch.setattr(Pace, "rest_s", lambda _pace, took_s: rests.append(took_s))
    stopped = ParquetArchiver(ArchiveFolder(tmp_path), lambda: True)
    with pytest.raises(ArchiveFailed, match="the process stops"):
        await stopped.archive(detached(table))
    assert rests == []


async def test_sum_ends_if_the_server_stands_still_and_not_by_a_limit_of_the_role(
    table: asyncpg.Connection, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot may be open for minutes. A part takes a tenth of a second, and never hours."""
    monkeypatch.setattr(table_rows, "PART_BLOCKS", 2)
    monkeypatch.setattr(table_rows, "STILL_S_MAX", 0.5)
    await fill(table, PARTITION, drawn(500, 10))
    named = RowsTable("public", PARTITION)
    wanted = await table_rows.checksum(table, named)
    has_limit = table.get_server_version().major >= 17
    url = f"{shared_url}&transaction_timeout=300ms" if has_limit else shared_url
    stopped: list[int] = []

    async def pause(_: float) -> None:
        await asyncio.sleep(0.05)

    async with opened_as("iot-ingest test", url, TIMEOUTS) as connection:
        assert await table_rows.checksum(connection, named, pause) == wanted
        pid = await connection.fetchval("select pg_backend_pid()")

        async def stop(_: float) -> None:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

        try:
            async with asyncio.timeout(20):
                with pytest.raises(Expired):
                    await table_rows.checksum(connection, named, stop)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert stopped == [pid]
