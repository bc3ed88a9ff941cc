"""A connection of the owner's role: of a housekeeping run, or to make the table.

Promises: a statement waits for a lock no longer than `lock_s_max`, and takes no longer than
`statement_s_max`. A transaction may take longer, whatever limit the role has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncpg import Connection

from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres.connection import Timeouts
from ingest.sinks.postgres.session import as_start_error

NAME = "iot-ingest housekeeping"  # as pg_stat_activity shows it

# Servers before PostgreSQL 17 have no such limit.
_NO_LIMIT = """
select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout'"""


@asynccontextmanager
async def opened(url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection of a housekeeping run.

    Each failure, also of what is done with it, is a StartError, without a password in its text.
    """
    with as_start_error(url):
        async with opened_as(NAME, url, timeouts) as connection:
            yield connection


@asynccontextmanager
async def opened_as(name: str, url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection to a server that can be written to. The driver's errors pass through."""
    async with asyncio.timeout(timeouts.connect_s_max):
        connection = await sink_connection.connect(
            url,
            name=name,
            statement_s_max=timeouts.statement_s_max,
            lock_s_max=timeouts.lock_s_max,
            within_s=timeouts.connect_s_max,
        )
    try:
        await connection.execute(_NO_LIMIT)
        yield connection
    finally:
        await sink_connection.close_politely(connection)
