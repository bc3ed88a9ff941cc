"""Find the database for a command, and connect to it.

In this order: the configured one, that of the service running on the state folder, else the
embedded one, started for the command's own duration while it holds the state folder's lock.
Failures to reach it become StartError, without a password in the text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ingest.config.settings import Settings, state_dir
from ingest.config.values import mask_url
from ingest.model.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg


def known_url(settings: Settings) -> str | None:
    """Return the URL of the configured database or of the running service's, else None."""
    if settings.database_url:
        return settings.database_url
    from ingest.system.state_folder import running_service  # noqa: PLC0415

    service = running_service(state_dir(settings))
    return service.database_url if service is not None else None


@asynccontextmanager
async def database(settings: Settings, *, may_make: bool = False) -> AsyncIterator[str]:
    """Yield the database's URL; an embedded one that was started for this is stopped again.

    Raises StartError if there is none (unless the caller `may_make` state folder and embedded
    database), or if the state folder is in use.
    """
    if url := known_url(settings):
        yield url
        return
    from ingest.embedded.server import EmbeddedPostgres  # noqa: PLC0415
    from ingest.system import logs  # noqa: PLC0415
    from ingest.system.state_folder import StateFolder, existing  # noqa: PLC0415

    logs.configure("error")

    path = state_dir(settings)
    if not may_make and not (StateFolder(existing(path)).postgres / "data").exists():
        raise StartError(
            f"no database has been made in the state folder {path} yet: --state-dir chooses "
            "another one, INGEST_DATABASE_URL a database of yours; `ingest serve` makes one"
        )
    folder = StateFolder.open(path)
    folder.lock()
    try:
        server = EmbeddedPostgres(folder.postgres)
        url = await server.start()
        try:
            yield url
        finally:
            await server.stop()
    finally:
        folder.unlock()


@contextmanager
def told_plainly(url: str) -> Iterator[None]:
    """Turn what the driver raises into StartError: the database's words, and which database."""
    import asyncpg  # noqa: PLC0415

    foreign = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError)
    try:
        yield
    except foreign as error:
        raise StartError(f"the database {mask_url(url)}: {_words(error)}") from error


def _words(error: Exception) -> str:
    code = getattr(error, "sqlstate", None)
    text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
    return f"{text} (SQLSTATE {code})" if code else text


@asynccontextmanager
async def connection(settings: Settings, url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Yield one connection; raise StartError if there is none within `connect_s_max`."""
    import asyncpg  # noqa: PLC0415

    with told_plainly(url):
        # the driver's own limit is per host, and a connection says farewell within its own time
        async with asyncio.timeout(settings.connect_s_max):
            opened = await asyncpg.connect(url, command_timeout=settings.command_s_max)
    try:
        yield opened
    finally:
        with contextlib.suppress(Exception):
            await opened.close(timeout=1)
