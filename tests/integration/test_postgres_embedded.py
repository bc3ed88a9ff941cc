"""The embedded PostgreSQL, with the real programs: starts, survives, ends with its parent."""

from __future__ import annotations

import asyncpg


async def test_readings_url_fresh_holds_an_empty_table(readings_url: str) -> None:
    """A test's database has the table, and nothing in it."""
    connection = await asyncpg.connect(readings_url)
    try:
        assert await connection.fetchval("select count(*) from readings") == 0
    finally:
        await connection.close()


async def test_database_url_fresh_has_no_table(database_url: str) -> None:
    """A fresh database is empty."""
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("select to_regclass('readings')") is None
    finally:
        await connection.close()
