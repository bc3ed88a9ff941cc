"""One connection for a command: `ingest schema`, `ingest doctor`.

Promises: each failure is a StartError, without a password in its text.

A connection of the owner's role: of a housekeeping run, or to make the table.

Promises: a statement waits for a lock no longer than `lock_s_max`, and takes no longer than
`statement_s_max`. A transaction may take longer, whatever limit the role has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from asyncpg import Connection

from ingest.config.values import mask_url
from ingest.model.causes import CONFIGURATION
from ingest.model.errors import StartError
from ingest.sinks.postgres import connection as sink_connection
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    SessionNotKept,
    Timeouts,
    close_politely,
    refuse_shared,
    text_of,
    unreachable_reason,
)
from ingest.sinks.postgres.sqlstate import reason_for


class DatabaseRefused(StartError):
    """The database cannot be used; `reason` is why, as in WriteFailed."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return reason_for("25006")
    if isinstance(error, (ValueError, SessionNotKept)):  # the URL, a certificate, a pooler
        return CONFIGURATION
    code = getattr(error, "sqlstate", None)
    return reason_for(code) if code else unreachable_reason(error)


@contextmanager
def as_start_error(url: str) -> Iterator[None]:
    """Turn errors of the driver into DatabaseRefused, with the name of the database in the text."""
    try:
        yield
    except (asyncpg.PostgresError, *DRIVER_ERRORS, ValueError) as error:
        code = getattr(error, "sqlstate", None)
        suffix = f" (SQLSTATE {code})" if code else ""
        text = f"the database {mask_url(url)}: {text_of(error)}{suffix}"
        raise DatabaseRefused(text, _reason(error)) from error


@asynccontextmanager
async def connected(url: str, timeouts: Timeouts) -> AsyncIterator[Connection]:
    """Yield one connection; raise StartError if there is none within `connect_s_max`."""
    with as_start_error(url):
        # The driver's own time-out counts for each host anew, so there is one for all of them.
        async with asyncio.timeout(timeouts.connect_s_max):
            opened = await asyncpg.connect(url, command_timeout=timeouts.command_s_max)
        try:
            await refuse_shared(opened)
        except SessionNotKept:
            opened.terminate()
            raise
    try:
        yield opened
    finally:
        await close_politely(opened)


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
