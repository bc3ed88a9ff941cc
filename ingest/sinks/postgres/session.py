"""One connection for a command: `ingest schema`, `ingest doctor`.

Promises: each failure is a StartError, without a password in its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from asyncpg import Connection

from ingest.config.values import mask_url
from ingest.model.errors import StartError
from ingest.model.verdict import CONFIGURATION
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
