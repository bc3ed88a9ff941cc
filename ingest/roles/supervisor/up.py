"""`ingest up`: gateways, a broker, writers and a database, started and led by one process.

The supervisor has the state folder, the listening sockets, the embedded servers and the admin port.
It handles no reading itself. It has a connection to the broker: for the dead letters of its page,
and to see what waits in the stream.
Order of the start: state folder, sockets, admin port; then database, broker with its stream, and
gateways side by side; a gateway begins when the broker is there, a writer when all of them are.
Order of the stop: gateways answer what they have; writers store what they can, the rest stays in
the stream; then broker, database, admin port.
Promises: the sockets stay open until the stop, so no connection that waits in them is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any

from ingest import __version__
from ingest.access.tokens import OPEN, TOKEN
from ingest.admin.exposition import Exposition
from ingest.app.admin import AdminSide
from ingest.app.buffer import UNLESS, check_promise
from ingest.app.database import make_target
from ingest.app.health import FirstContact
from ingest.app.metrics_and_causes import advice
from ingest.app.post_rules import open_tokens, shown_sources, with_access
from ingest.app.process import (
    Process,
    begun,
    greeting_lines,
    refuse_left_files,
    refuse_left_stream,
    refuse_other_database,
)
from ingest.app.receiving import LEAVE_S_MAX, check_files
from ingest.config.settings import Settings, split_address
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.http.listener import open_slots
from ingest.model.errors import BrokerAway, BrokerRefused, IngestError, StartError
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import streams, watch
from ingest.roles.nats.connection import BrokerConnection, connected
from ingest.roles.nats.protocol import Address
from ingest.roles.role import (
    configured_address,
    configured_monitors,
    left_in,
    make_embedded,
    note_rest,
    stream_letters,
    wanted_streams,
)
from ingest.roles.supervisor.child import PROGRAM, Message, family_lock
from ingest.roles.supervisor.children import GATEWAY, WRITER, Children, ChildTimes
from ingest.roles.supervisor.overview import Overview
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.system import logs
from ingest.system.clock import sleep_unless, unix_us
from ingest.system.files import Lock
from ingest.system.process_setup import handle_hangup
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import ServiceInfo, StateFolder
from ingest.system.waiting import together

_ADMIN = "admin"
LOOK_S = 0.1


GRACE_S = 15.0  # of a child beyond its own limit; a dead letter may take 10 s to fail
WATCH_S = 1.0
STORED_S_MAX = 5.0  # for what gateways have published last; a backlog stays in the stream
AGAIN_S = 5.0  # until the next restart, if one could not be finished that must be


async def up(
    settings: Settings,
    *,
    announce: Callable[[str], None],
    url_origin: str = "default",
    terminal: bool = False,
    program: Sequence[str] = PROGRAM,
    times: ChildTimes | None = None,
) -> int:
    """Run all processes until SIGTERM or SIGINT; return the exit code, as `serve` does.

    Raises StartError and ConfigError with a sentence for the user. `announce` gets the lines for a
    person. `program` are the words that start a child. `url_origin`: where database_url was set.
    """
    with begun(settings, "up") as folder:
        check_files(settings)  # a gateway would find the fault, and end again and again
        refuse_left_files(folder)
        if settings.broker_url:
            refuse_left_stream(folder, "ingest up --broker-url")
        refuse_other_database(folder, settings)
        return await Supervisor(
            settings,
            folder,
            Process("up", announce, Notifier.from_environment()),
            program=program,
            times=times or ChildTimes(leave_s_max=LEAVE_S_MAX + settings.drain_s_max + GRACE_S),
            words=advice(settings, url_origin),
            terminal=terminal,
        ).run()


class Supervisor:
    """One `ingest up`: its parts, its tasks, its stop."""

    def __init__(
        self,
        settings: Settings,
        folder: StateFolder,
        process: Process,
        *,
        program: Sequence[str],
        times: ChildTimes,
        words: Mapping[str, str],
        terminal: bool,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._process = process
        self._terminal = terminal
        self._fix_url = words["fix_url"]
        self._token = settings.admin_token or secrets.token_urlsafe(24)
        self._servers = Servers(settings, folder, process.guard)
        self._contact = FirstContact(
            lambda: None,
            folder,
            may_take=bool(settings.database_url),
            is_embedded=not settings.database_url,
            target=make_target(settings),
        )
        self._token_file = open_tokens(settings)
        overview = self.overview = Overview(
            settings,
            dead_letters=self._servers.dead_letters.stats,
            free_bytes=lambda: folder.room()[0],
            advice=words,
        )
        self._children = Children(
            self._configuration,
            self._heard,
            overview.instances.gone,
            program=program,
            times=times,
        )
        self.admin = AdminSide(
            settings,
            overview.observed._replace(ledger=overview.own),
            dead_letters=self._servers.dead_letters,
            token=self._token,
            tokens=self._token_file.tokens,
            release_hold=partial(overview.release_hold, self._children.tell),
            several=overview.observed,
            exposition=Exposition(overview.instances.shown),
        )
        self._sockets: list[socket.socket] = []
        self._family: Lock | None = None
        self._restart = asyncio.Event()
        self._is_moved = False  # a server is where not all processes look for it
        self._log = logs.get_logger("up")

    async def run(self) -> int:
        """Start, wait for a signal, stop; return the exit code."""
        handle_hangup(self._restart, self._process.stopping)
        return await self._process.run(
            self._start, self._stop, self._close, in_words=self.overview.in_words
        )

    # Start

    async def _start(self) -> None:
        folder = self._folder
        self._contact.begin(self._settings.database_url)
        self._contact.note()  # gateways take posts without a database
        _, *durable = folder.durable_parts(embedded=not self._settings.database_url)  # no journal
        check_promise(durable, unsafe=self._settings.journal_unsafe, unless=UNLESS)
        self._family = await family_lock(folder.path / "children.lock")
        listen = await self._listen()
        settings = self._settings  # `access` is decided
        admin_listen = await self.admin.start(listen)
        self._process.spawn(self.overview.show(self.admin.dashboard, self._process.halted))
        children, family_fd = self._children, self._family.fileno()
        for each in self._sockets:
            children.add(GATEWAY, family_fd, each.fileno())
        for _ in range(settings.writer_processes):
            children.add(WRITER, family_fd)
        try:
            await self._start_all()
        except Exception:
            await self._stop()  # gateways may have answered posts already
            raise
        children.keep(self._process.spawn)
        self._process.spawn(self._token_file.follow(self._process.halted))
        self._process.spawn(self._watch_servers())
        self._process.spawn(self._restart_when_told())
        known = KnownServer(0, make_target(settings))
        self.admin.database(lambda: self._servers.database_url, known)
        self._publish(listen, admin_listen)
        for line in greeting_lines(
            settings,
            folder=folder.path,
            listen=listen,
            admin_listen=admin_listen,
            needs_token=settings.access == TOKEN,
            page=self.admin.page_address(with_key=self._terminal),
            target=known.target,
            sources=shown_sources(settings),
        ):
            self._process.announce(line)

    async def _listen(self) -> str:
        """Open the sockets; return their HOST:PORT. Raises StartError."""
        host, port = split_address(self._settings.listen)
        try:
            self._sockets = await open_slots(host, port, self._settings.gateways)
        except (OSError, OverflowError) as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            raise StartError(
                f"cannot listen on {host}:{port} ({why}); choose another with --listen HOST:PORT"
            ) from error
        bound, real_port, *_ = self._sockets[0].getsockname()
        address = f"[{bound}]:{real_port}" if ":" in bound else f"{bound}:{real_port}"
        self._settings = with_access(self._settings, address)
        return address

    def _configuration(self, role: str, instance: str, listen_fd: int | None) -> Message:
        """Return what a child gets first. Secrets reach it in no other way, and only its own."""
        unneeded = ("admin_token", *(() if role == WRITER else ("database_url",)))
        return {
            "settings": asdict(self._settings)
            | {each: "" for name in unneeded for each in (name, f"{name}_file")},
            "instance": instance,
            "listen_fd": listen_fd,
            "broker": self._servers.broker_for(role),
            "database_url": self._servers.database_url if role == WRITER else "",
        }

    async def _start_all(self) -> None:
        """Start the servers, and the children side by side with them.

        Writers come after the gateways: with few cores the first post is taken earlier.
        """
        database = asyncio.create_task(self._servers.start_database())
        broker = asyncio.create_task(self._servers.start_broker())

        async def start_children() -> None:
            await self._children.start(GATEWAY, broker)
            self._process.notifier.ready()
            await self._children.start(WRITER, database)

        await together(database, broker, start_children())

    def _publish(self, listen: str, admin_listen: str) -> None:
        cert_file = self._settings.tls_cert_file
        self._folder.publish(
            ServiceInfo(
                pid=getpid(),
                version=__version__,
                listen=listen,
                admin_listen=admin_listen,
                database_url=self._servers.database_url,
                token=self._token,
                page=self.admin.page_address(with_key=True),
                started_us=unix_us(),
                cert_file=cert_file and str(Path(cert_file).absolute()),
                target=make_target(self._settings).in_sql,
                is_open=self._settings.access == OPEN,
                fix_url=self._fix_url,
            )
        )

    # While it runs

    def _heard(self, instance: str, status: Mapping[str, Any]) -> None:
        """Take a status. Once all writers have found the table right, note its database."""
        self.overview.status(instance, status)
        if self.overview.instances.database_up():
            self._contact.checked(self._settings.database_url)

    async def _watch_servers(self) -> None:
        """Restart the processes if an embedded server is at another place now."""
        known = self._places()
        while not await sleep_unless(self._process.stopping, WATCH_S):
            if (now := self._places()) != known:
                self._log.warning("server_moved")
                known = now
                self._is_moved = True
                self._restart.set()

    def _places(self) -> tuple[str, dict[str, Any]]:
        return self._servers.database_url, self._servers.broker_for(GATEWAY)

    async def _restart_when_told(self) -> None:
        """Restart one process after the other, each time that `_restart` is set.

        If one cannot be replaced, the others stay as they are, unless they cannot work so. If a
        file is wrong that a new gateway needs, all stay.
        """
        while not self._process.stopping.is_set():
            if await sleep_unless(self._restart, WATCH_S) and not self._process.stopping.is_set():
                self._restart.clear()
                self._process.notifier.reloading()
                is_done = await self._may_restart() and await self._children.restart(
                    self._process.stopping
                )
                self._is_moved = self._is_moved and not is_done
                if not self._process.stopping.is_set():
                    self._process.notifier.ready()
                if self._is_moved and not await sleep_unless(self._process.stopping, AGAIN_S):
                    self._restart.set()

    async def _may_restart(self) -> bool:
        try:
            await asyncio.to_thread(check_files, self._settings)
        except IngestError as error:
            self._log.error("restart_refused", why=str(error))
            return False
        return True

    # Stop

    async def _stop(self) -> Mapping[str, int]:
        """Drain the gateways, then the writers; return the sums."""
        self.overview.draining()
        halted, within_s = self._process.halted, self._settings.drain_s_max + GRACE_S
        told = await self._children.drain(within_s, halted, self._wait_stored)
        if not (told or halted.is_set()):
            # A child that was killed in a hurry has nothing that was acknowledged.
            self._process.broken = True
        self.overview.instances.refresh()
        ledger = self.overview.instances.ledger
        return {
            "committed": ledger.committed + ledger.duplicate,
            "dead_lettered": ledger.set_aside,
            "held": ledger.held,
            "lost": self._children.lost,
        }

    async def _wait_stored(self) -> None:
        """Give the writers a moment for the last readings: `serve` does not start with any left."""
        instances = self.overview.instances
        if instances.database_up() and instances.hold_reason() is None:
            await self._servers.wait_stored(
                self._process.halted, min(STORED_S_MAX, self._settings.drain_s_max)
            )

    async def _close(self) -> None:
        """End all processes, and close everything, the rest also if something fails."""
        async with contextlib.AsyncExitStack() as last:  # from its end to its begin
            if self._family is not None:
                last.callback(self._family.close)
            last.callback(self._folder.withdraw)
            last.push_async_callback(self.admin.close)
            last.push_async_callback(self._servers.stop)
            for each in self._sockets:
                last.callback(each.close)
            last.push_async_callback(self._process.wait_tasks)
            await self._children.close()


class Servers:
    """The database and the broker: those that the settings name, or embedded ones.

    It starts and stops the embedded ones, and says how children reach them. Raises StartError.

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
        self._log = logs.get_logger("up")

    async def start_database(self) -> None:
        """Start the embedded database, if it is one."""
        if self._database is not None:
            await self._database.start()

    async def start_broker(self) -> None:
        """Start the embedded broker, and make its stream; or check the stream of the other one."""
        await self._start_broker()
        self._connected = self._guard(self._connection.run(self._cut))

    async def _start_broker(self) -> None:
        wanted = wanted_streams(self._settings)
        if self._broker is not None:
            await self._broker.start()
            try:
                async with connected(self._address(_ADMIN), _ADMIN) as connection:
                    for each in wanted:
                        await streams.apply(connection, each)
            except (BrokerAway, BrokerRefused) as error:
                size = f"stream_bytes_max is {self._settings.stream_bytes_max:,} bytes"
                small = f"; {size}: set less, or free space on the disk"
                hint = small if "(code 10047)" in str(error) else ""
                raise StartError(f"the stream could not be made: {error}{hint}") from error
            return
        try:
            async with connected(self._address(_ADMIN), _ADMIN) as connection:
                found = [await streams.look(connection, each.names) for each in wanted]
        except (BrokerAway, BrokerRefused) as error:  # the gateways and writers try it again
            self._log.warning("stream_not_looked_at", why=str(error))
            return
        listed = [
            fault
            for there, each in zip(found, wanted, strict=True)
            for fault in streams.faults(there, each)
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
