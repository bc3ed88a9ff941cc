"""The archive with a real PostgreSQL: bit for bit, merged, verified, restored, killed half-way."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ingest.archive import runs
from ingest.archive.folder import ArchiveFailed
from ingest.sinks.postgres.housekeeping import archive_rows, archived, registry
from ingest.sinks.postgres.housekeeping.archive_rows import RowsTable
from tests.support.archives import (
    FROM_US,
    PARTITION,
    TO_US,
    archiver,
    detached,
    drawn,
    fill,
    key_of,
    rows_in,
    rows_in_files,
    store,
)


@pytest.fixture
async def table(operator: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection to a database with the table and its registry."""
    await registry.make(operator, "readings")
    yield operator


async def test_rows_come_back_bit_for_bit(table: asyncpg.Connection, tmp_path: Path) -> None:
    """All kinds of floats, times and names, sorted by device, metric and time; nothing beside."""
    rows = drawn(3_000, 1)
    await fill(table, PARTITION, rows)
    await archiver(tmp_path).archive(detached(table))
    (found,) = await archived.contents(table, "readings")
    assert sorted(rows_in_files([tmp_path / found.files[0][0]])) == sorted(rows)
    in_file = rows_in_files([tmp_path / f"{PARTITION}.parquet"])
    order = [(row[1].encode(), row[2].encode(), row[0]) for row in in_file]
    assert order == sorted(order)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", f"{PARTITION}.parquet"]
    assert (found.rows, found.from_us, found.to_us) == (3_000, FROM_US, TO_US)
