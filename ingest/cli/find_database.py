"""Finds the database for a command.

The order: the configured database, that of the service that runs on the state folder, the embedded
one. The embedded one is started for the time of the command. A service or a command that starts
meanwhile uses the same server, and the service starts its own one afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.model.errors import StartError


def known_url(settings: Settings) -> str | None:
    """Return the URL of the configured database or of the running service, else None."""
    if settings.database_url:
        return settings.database_url
    from ingest.system.state_folder import running_service  # noqa: PLC0415

    service = running_service(state_dir(settings))
    return service.database_url if service is not None else None


@asynccontextmanager
async def database(settings: Settings, *, may_make: bool = False) -> AsyncIterator[str]:
    """Yield the database's URL. An embedded database that this starts is stopped afterwards.

    Raises StartError if there is no database. With `may_make` it makes the state folder and the
    embedded database instead.
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
            f"there is no database in the state folder {path} yet: `ingest serve` makes one. "
            "To use another one, set --state-dir or INGEST_DATABASE_URL"
        )
    server = EmbeddedPostgres(StateFolder.open(path).postgres)
    url = await server.start()
    try:
        yield url
    finally:
        await server.stop()


@asynccontextmanager
async def owners_database(settings: Settings) -> AsyncIterator[str]:
    """Yield the URL with the role that owns the table; without one, that of `database`.

    So a job of its own needs no other URL, and no state folder.
    """
    from ingest.app.database import housekeeping_url  # noqa: PLC0415

    if settings.housekeeping_url:
        yield housekeeping_url(settings, lambda: "")()
        return
    async with database(settings) as found:
        yield found
