"""The connection of a housekeeping run.

Promises: each failure is a StartError, without a password in its text. A statement waits for a lock
no longer than `lock_s_max`, and takes no longer than `statement_s_max`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncpg import Connection

from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres.connection import Timeouts
from ingest.sinks.postgres.session import as_start_error


@asynccontextmanager
async def opened(url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield a connection to a server that can be written to."""
    with as_start_error(url):
        async with asyncio.timeout(timeouts.connect_s_max):
            connection = await sink_connection.connect(
                url,
                name="iot-ingest housekeeping",
                statement_s_max=timeouts.statement_s_max,
                within_s=timeouts.connect_s_max,
                lock_s_max=timeouts.lock_s_max,
            )
        try:
            yield connection
        finally:
            await sink_connection.close_politely(connection)
