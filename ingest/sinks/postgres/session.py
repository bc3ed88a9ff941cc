"""One connection for a command of a person: `ingest schema`, `ingest doctor`.

Failures become StartError, without a password in the text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from asyncpg import Connection

from ingest.config.values import mask_url
from ingest.model.errors import StartError
from ingest.sinks.postgres.connection import DRIVER_ERRORS


@contextmanager
def as_start_error(url: str) -> Iterator[None]:
    """Turn what the driver raises into StartError: the database's words, and which database."""
    try:
        yield
    except (asyncpg.PostgresError, *DRIVER_ERRORS, ValueError) as error:
        raise StartError(f"the database {mask_url(url)}: {_words(error)}") from error


def _words(error: Exception) -> str:
    code = getattr(error, "sqlstate", None)
    text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
    return f"{text} (SQLSTATE {code})" if code else text


@asynccontextmanager
async def connected(
    url: str, *, connect_s_max: float, command_s_max: float
) -> AsyncIterator[Connection]:
    """Yield one connection; raise StartError if there is none within `connect_s_max`."""
    with as_start_error(url):
        # the driver's own limit is per host, and a connection says farewell within its own time
        async with asyncio.timeout(connect_s_max):
            opened = await asyncpg.connect(url, command_timeout=command_s_max)
    try:
        yield opened
    finally:
        with contextlib.suppress(Exception):
            await opened.close(timeout=1)
