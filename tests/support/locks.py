"""Locks the table against the service, as an operator's work does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def table_locked(url: str, mode: str = "exclusive") -> AsyncIterator[asyncpg.Connection]:
    """Lock the table, so that no other client can write (`access exclusive`: nor read).

    Gives the connection that holds it, in its transaction.
    """
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"lock table readings in {mode} mode")
            yield connection
    finally:
        await connection.close()
