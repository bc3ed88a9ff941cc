"""Finds the broker for a command, and connects to it as the admin.

The order: the configured servers, the embedded broker that a process runs in the state folder, and
the same one started for the time of the command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from ingest.app.broker import (
    configured_address,
    configured_monitors,
    make_embedded,
    note_rest,
)
from ingest.broker.connection import BrokerConnection, connected
from ingest.config.folders import state_dir
from ingest.config.settings import Settings
from ingest.embedded.broker import running_broker
from ingest.model.errors import StartError
from ingest.system import logs
from ingest.system.state_folder import StateFolder, existing

_ROLE = "admin"


class Reached(NamedTuple):
    """A broker, and the monitor ports of its servers."""

    connection: BrokerConnection
    monitors: tuple[str, ...]


@asynccontextmanager
async def broker(settings: Settings, *, may_make: bool = False) -> AsyncIterator[Reached]:
    """Yield the broker. Raises StartError and BrokerAway if there is none.

    With `may_make` it makes the state folder and the embedded broker instead.
    """
    logs.configure("critical")  # what fails is an error of the command
    if (address := configured_address(settings)) is not None:
        async with connected(address, _ROLE) as connection:
            yield Reached(connection, configured_monitors(settings))
        return
    path = state_dir(settings)
    if not may_make and not StateFolder(existing(path)).broker.exists():
        raise StartError(
            f"there is no broker in the state folder {path} yet: `ingest stream apply` makes one. "
            "To use another one, set --state-dir or INGEST_BROKER_URL"
        )
    folder = StateFolder.open(path)
    if (running := running_broker(folder.broker)) is not None:
        async with connected(running.address(_ROLE), _ROLE) as connection:
            yield Reached(connection, (running.endpoints.monitor_url,))
        return
    server = make_embedded(settings, folder)
    await server.start()
    try:
        published = server.published
        async with connected(published.address(_ROLE), _ROLE) as connection:
            try:
                yield Reached(connection, (published.endpoints.monitor_url,))
            finally:
                await note_rest(folder, connection)
    finally:
        await server.stop()
