"""The database and the broker of `ingest up`: those that the settings name, or embedded ones.

The supervisor has a connection to the broker too: for the dead letters of its page, and to see what
waits in the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from ingest.config.settings import Settings
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.model.errors import BrokerAway, BrokerRefused, IngestError, StartError
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import streams as manage
from ingest.roles.nats import watch
from ingest.roles.nats.connection import BrokerConnection, connected
from ingest.roles.nats.envelope import Address
from ingest.roles.nats.streams import Wanted
from ingest.roles.role import (
    configured_address,
    configured_monitors,
    left_in,
    make_embedded,
    note_rest,
    stream_letters,
    wanted_dead_letters,
    wanted_stream,
)
from ingest.system.clock import sleep_unless
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder

_ADMIN = "admin"
LOOK_S = 0.1


class Servers:
    """Starts and stops the embedded ones; says how children reach them. Raises StartError.

    Make it in the running event loop. `guard` starts a task, as Process does.
    """

    def __init__(
        self,
        settings: Settings,
        folder: StateFolder,
        guard: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._guard = guard
        self._settings = settings
        self._folder = folder
        self._configured = configured_address(settings)
        self._broker: EmbeddedBroker | None = None
        self._database: EmbeddedPostgres | None = None
        if self._configured is None:
            self._broker = make_embedded(settings, folder)
        if not settings.database_url:
            self._database = EmbeddedPostgres(folder.postgres)
        self._connection = BrokerConnection(lambda: self._address(_ADMIN), _ADMIN)
        self._cut = asyncio.Event()
        self._connected: asyncio.Task[None] | None = None
        self.dead_letters = stream_letters(settings, self._connection)
        self._log = get_logger("up")

    async def start_database(self) -> None:
        """Start the embedded database, if it is one."""
        if self._database is not None:
            await self._database.start()

    async def start_broker(self) -> None:
        """Start the embedded broker, and make its stream; or check the stream of the other one."""
        await self._start_broker()
        self._connected = self._guard(self._connection.run(self._cut))

    async def _start_broker(self) -> None:
        wanted: list[Wanted] = [
            wanted_stream(self._settings),
            wanted_dead_letters(self._settings),
        ]
        if self._broker is not None:
            await self._broker.start()
            try:
                async with connected(self._address(_ADMIN), _ADMIN) as connection:
                    for each in wanted:
                        await manage.apply(connection, each)
            except (BrokerAway, BrokerRefused) as error:
                raise StartError(f"the stream could not be made: {error}") from error
            return
        try:
            async with connected(self._address(_ADMIN), _ADMIN) as connection:
                found = [await manage.look(connection, each.names) for each in wanted]
        except (BrokerAway, BrokerRefused) as error:  # the gateways and writers try it again
            self._log.warning("stream_not_looked_at", why=str(error))
            return
        listed = [
            fault
            for there, each in zip(found, wanted, strict=True)
            for fault in manage.faults(there, each)
        ]
        if not self._settings.broker_unsafe:
            listed += await asyncio.to_thread(
                watch.monitor_faults, configured_monitors(self._settings)
            )
        if listed:
            raise StartError(
                f"the broker is not as it must be: {'; '.join(map(str, listed))}. See `ingest "
                "stream check`; `ingest stream apply` makes or changes the stream"
            )

    @property
    def database_url(self) -> str:
        """The URL of the database now. The embedded one may get another one."""
        return self._settings.database_url or (self._database.url if self._database else "")

    def broker_for(self, role: str) -> dict[str, Any]:
        """Return how a role reaches the broker now, as its configuration says it."""
        monitors = configured_monitors(self._settings)
        if self._broker is not None:
            monitors = (self._broker.published.endpoints.monitor_url,)
        return {**self._address(role)._asdict(), "monitors": monitors}

    def _address(self, role: str) -> Address:
        if self._configured is not None:
            return self._configured
        assert self._broker is not None, "it is one of the two"
        return self._broker.published.address(role)

    async def wait_stored(self, halted: asyncio.Event, within_s: float) -> None:
        """Wait until nothing waits in the embedded broker's stream; return early if `halted`."""
        if self._broker is None:
            return
        with contextlib.suppress(IngestError, TimeoutError):
            async with asyncio.timeout(within_s):
                while (await left_in(self._connection)).messages:
                    if await sleep_unless(halted, LOOK_S):
                        return

    async def stop(self) -> None:
        """Stop the embedded ones, each also if something else fails. Repeatable."""
        async with contextlib.AsyncExitStack() as last:
            for each in (self._database, self._broker):
                if each is not None:
                    last.push_async_callback(each.stop)
            await self.dead_letters.close()
            if self._connected is not None:
                if self._broker is not None:
                    await note_rest(self._folder, self._connection)
                self._cut.set()
                await self._connected
                self._connected = None
