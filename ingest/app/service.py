"""The service: both halves in one process, and the order in which all parts start and stop.

`receiving` makes the first half of the path, `writing` the second, `admin` the admin port.
Order of the start: state folder, journal, dead letters, ports (they answer `starting`), database,
writers, replay.
Order of the stop: connections end, if the process manager keeps their socket; no new posts; posts
in flight are finished; the writers empty the buffer; rows that are left stay in the journal or go
to the dead letters; data port, dead letters, journal, embedded database and admin port are closed.
Promises: a task that has readings is never cancelled.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from os import getpid
from pathlib import Path

from msgspec.structs import replace

from ingest import __version__
from ingest.access import tokens
from ingest.app import fill, housekeeping
from ingest.app.access import open_tokens
from ingest.app.admin import AdminSide
from ingest.app.advice import advice, database_words
from ingest.app.begin import begun
from ingest.app.buffer import keep_rest, make_buffer, open_buffer
from ingest.app.fill import Fill
from ingest.app.first_contact import FirstContact
from ingest.app.greeting import greeting_lines
from ingest.app.health import Health
from ingest.app.leftovers import refuse_left_stream
from ingest.app.receiving import leave, make_endpoint, taking
from ingest.app.refusals import Refusals
from ingest.app.rules import make_rules
from ingest.app.target import make_target
from ingest.app.tasks import EXIT_BROKEN, EXIT_LOST, EXIT_OK, TASKS_S_MAX, Tasks
from ingest.app.writing import WritingHalf
from ingest.config.reread_url import RereadUrl
from ingest.config.settings import Settings, split_address
from ingest.dead_letters.folder import segment_bytes
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.embedded.server import EmbeddedPostgres
from ingest.http import certificate
from ingest.model.errors import StartError
from ingest.model.ledger import Gauges, Ledger
from ingest.model.metrics import figures_of
from ingest.receiver import senders
from ingest.receiver.refused_posts import RefusedPosts
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.system import logs
from ingest.system import signals as app_signals
from ingest.system.activation import given_sockets
from ingest.system.clock import monotonic_s, sleep_unless, unix_us
from ingest.system.notify import Notifier
from ingest.system.state_folder import ServiceInfo, StateFolder

HANDLERS_GRACE_S = 1.0


async def serve(
    settings: Settings,
    *,
    announce: Callable[[str], None],
    url_origin: str = "default",
    terminal: bool = False,
) -> int:
    """Run the service until SIGTERM or SIGINT; return the process's exit code.

    Raises StartError with a sentence for the user if it cannot start. `announce` gets the lines
    for a person; everything else goes to the log. Only at a `terminal` they have the key of the
    dashboard: elsewhere they may be kept in a file. `url_origin` is where database_url was set.
    """
    with begun(settings, "service") as folder:
        refuse_left_stream(folder)
        notifier = Notifier.from_environment()
        words = advice(settings, url_origin)
        service = Service(settings, folder, announce, notifier, words, terminal=terminal)
        async with notifier.reporting(service.health.in_words):
            return await service.run()


class Service:
    """One running service: its parts, its tasks, its stop."""

    def __init__(
        self,
        settings: Settings,
        folder: StateFolder,
        announce: Callable[[str], None],
        notifier: Notifier,
        words: Mapping[str, str],
        *,
        terminal: bool,
    ) -> None:
        self._settings = settings
        self._given = given_sockets()
        self._target = make_target(settings)
        self._terminal = terminal
        self._folder = folder
        self._announce = announce
        self._notifier = notifier
        self._token = settings.admin_token or secrets.token_urlsafe(24)
        self._stopping = asyncio.Event()  # the drain begins
        self._halted = asyncio.Event()  # the drain ends: rows that are left are kept as they are
        self._writing_ends = asyncio.Event()  # the writers end now
        self._tasks = Tasks(self._stopping, "service")
        self._embedded: EmbeddedPostgres | None = None
        self._info: ServiceInfo | None = None  # what was published
        self.ledger = Ledger()
        self.buffer = make_buffer(settings, folder, self.ledger)
        self.writing = WritingHalf(
            settings,
            outlet=self.buffer,
            ledger=self.ledger,
            halted=self._writing_ends,
            keeps_rest=lambda: settings.buffer == "journal" and not self.buffer.broken,
            # The embedded database is on the disk that we know.
            disk_free_bytes=lambda: self.health.disk_free_bytes if self._embedded else None,
        )
        self.dead_letters = DeadLetterQueue(
            folder.dead_letters,
            bytes_max=settings.dlq_bytes_max,
            segment_bytes=segment_bytes(settings.dlq_bytes_max),
            keep_days=settings.dlq_keep_days,
            auto_replay=settings.dlq_auto_replay,
            rules=make_rules(settings),
        )
        self._token_file = open_tokens(settings)
        self._reread = RereadUrl(settings)
        self._connect_parts(words)

    def _connect_parts(self, words: Mapping[str, str]) -> None:
        settings, database_state = self._settings, self.writing.database_state
        refused_posts = RefusedPosts(self.ledger)
        self.health = Health(
            settings=settings,
            buffer=self.buffer.stats,
            database_state=database_state,
            url_fault=self._reread.fault,
            disk=self._folder,
            disk_broken=lambda: self.buffer.broken,
            dead_letters=self.dead_letters.stats,
            troubles=(*self.writing.troubles, lambda: self.endpoint.senders.not_stored()),  # noqa: PLW0108
            refusals=Refusals(self.ledger),
            fill=Fill(settings, lambda: self.buffer.journal_stats().size_bytes),
            advice=words,
        )
        may_take = settings.buffer == "journal" and bool(settings.database_url)
        self.first_contact = FirstContact(
            self.health, self._folder, may_take=may_take, target=self._target
        )
        self.admin_side = AdminSide(
            settings,
            ledger=self.ledger,
            dead_letters=self.dead_letters,
            readyz=self.health.readyz,
            message=lambda: database_state.message,
            token=self._token,
            tokens=self._token_file.tokens,
            release_hold=self.writing.release_hold,
            refused_posts=refused_posts.listed,
        )
        self.endpoint = make_endpoint(
            settings,
            inlet=self.buffer,
            levels=self.buffer.levels,
            dead_letters=self.dead_letters,
            ledger=self.ledger,
            admission=self.health,
            database=database_state,
            health=self.health.readyz_for_devices,
            on_refused=refused_posts.refused,
            on_decoded=self.admin_side.dashboard.tail.observe,
            tokens=self._token_file.tokens,
        )
        self.ledger.gauges = self._gauges()

    def _gauges(self) -> Gauges:
        database_state = self.writing.database_state
        return Gauges(
            buffer=self.buffer.stats,
            dead_letters=self.dead_letters.stats,
            database_up=lambda: database_state.up and self.writing.checked,
            hold_reason=lambda: database_state.hold_reason,
            journal=self.buffer.journal_stats,
            state=self.health.state,
            figures=figures_of(
                (fill.METRICS, lambda: self.health.fill),
                (senders.METRICS, lambda: self.endpoint.senders),
                (housekeeping.METRICS, lambda: self.writing.housekeeping),
                (certificate.METRICS, lambda: self.endpoint.certificate),
                (tokens.METRICS, lambda: self._token_file.tokens),
            ),
        )

    async def run(self) -> int:
        """Start, wait for a signal, stop; return the exit code."""
        app_signals.handle(self._stopping, self._halted)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting  # raises its error, if it has one
                await stopping
            return await self._stop()
        finally:
            starting.cancel()  # if a signal came first, before the first answer of the database
            stopping.cancel()
            await asyncio.wait((starting, stopping))
            await self._end()

    # Start

    async def _start(self) -> None:
        settings = self._settings
        for work in open_buffer(self.buffer, settings, self._folder, self._announce):
            self._tasks.spawn(work(self._stopping))
        await self.dead_letters.open()
        data, admin = self._given
        accepts = taking(lambda: not self.health.starting, self._stopping)
        listen = await self.endpoint.start(*split_address(settings.listen), data, accepts)
        admin_listen = await self.admin_side.start(listen, settings.admin_listen, admin)
        self._notifier.ready()
        self._tasks.spawn(self._token_file.follow(self._halted))
        self._tasks.spawn(self.health.run(self._stopping))
        self._tasks.spawn(self.admin_side.dashboard.run(self._halted))
        url = await self._database()
        self.admin_side.database(url, self.writing.known)
        self._info = ServiceInfo(
            pid=getpid(),
            version=__version__,
            listen=listen,
            admin_listen=admin_listen,
            database_url=url(),
            token=self._token,
            page=self.admin_side.page_address(admin_listen, with_key=True),
            started_us=unix_us(),
            cert_file=settings.tls_cert_file and str(Path(settings.tls_cert_file).absolute()),
            target=self._target.in_sql,
            is_open=not self.endpoint.needs_token,
        )
        self._folder.publish(self._info)
        self.first_contact.begin(url())
        writing = self.writing
        self._tasks.spawn(self._open_database(url))
        await writing.first_try.wait()
        if writing.refusal:
            raise StartError(writing.refusal)
        state = writing.database_state
        for line in greeting_lines(
            state_dir=self._folder.path,
            listen=listen,
            cert_file=self._settings.tls_cert_file,
            admin_listen=admin_listen,
            needs_token=self.endpoint.needs_token,
            page=self.admin_side.page_address(admin_listen, with_key=self._terminal),
            database="" if self._embedded else database_words(self._settings),
            table=self._target.name,
            waiting="" if state.is_open else state.message or "no answer yet",
        ):
            self._announce(line)

    async def _database(self) -> DatabaseUrl:
        """Return what gives the URL of the configured database, or of the embedded one."""
        if self._settings.database_url:
            return self._reread
        embedded = self._embedded = EmbeddedPostgres(self._folder.postgres)
        await embedded.start()
        return lambda: embedded.url

    def _checked(self, url: str) -> None:
        """A connection has found the table right: remember that, and tell commands a new URL."""
        self.first_contact.checked(url)
        if self._info is not None and url != self._info.database_url:
            self._info = replace(self._info, database_url=url)
            try:
                self._folder.publish(self._info)
            except OSError as error:  # commands do not find the new URL; the service goes on
                logs.get_logger("service").warning("url_not_published", why=str(error))

    async def _open_database(self, url: DatabaseUrl) -> None:
        """Check the table; then accept posts and start writers and replay."""
        if await self.writing.open(
            url,
            self._stopping,
            posts_taken=lambda: not self.health.starting,
            on_away=self.first_contact.away,
            on_checked=self._checked,
        ):
            self.health.started()
            self.writing.start(self.admin_side.observed_dead_letters, self._tasks.spawn)
            replayer = self.writing.make_replayer(self.dead_letters, self.buffer)
            self._tasks.spawn(replayer.run(self._stopping))

    # Stop

    async def _stop(self) -> int:
        """Drain; return the exit code. Bounded by `drain_s_max` and the dead letters' disk."""
        self._notifier.stopping()
        if self._given.data:
            await leave(self.endpoint, self._halted)
        drain_s_max = self._settings.drain_s_max
        if self.writing.leaves_rest:
            drain_s_max = min(drain_s_max, HANDLERS_GRACE_S)
        deadline_s = monotonic_s() + drain_s_max
        self.health.draining()
        halt = asyncio.create_task(self._halt_at(deadline_s))
        if self.writing.leaves_rest:  # posts that wait for their commit get their answer now
            await self.writing.finish()
            await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.endpoint.finish(drain_s_max + HANDLERS_GRACE_S)
        self.buffer.shut_inlet()
        await self.writing.finish()
        self._halted.set()
        await halt  # it aborts the connection that a start still waits for
        await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.endpoint.close()
        # Again, for a post whose dead letters were still being synced when its handler ended:
        await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.dead_letters.close()
        ledger = self.ledger
        lost = max(0, ledger.imbalance) + ledger.held - self.buffer.stats().rows_kept
        app_signals.ignore()  # before the message: its reader may send another signal
        self._announce(
            f"drained: committed={ledger.committed + ledger.duplicate} "
            f"dead_lettered={sum(ledger.dead_lettered.values())} held={ledger.held} lost={lost}"
        )
        if lost:
            return EXIT_LOST
        return EXIT_BROKEN if self._tasks.broken else EXIT_OK

    async def _halt_at(self, deadline_s: float) -> None:
        """At the deadline, at a second signal, or at the end of the drain, abort the writers."""
        await sleep_unless(self._halted, deadline_s - monotonic_s())
        self._halted.set()
        self._writing_ends.set()
        self.buffer.shut_inlet()
        self.writing.abort()

    async def _end(self) -> None:
        """End all tasks, close everything, and stop the embedded database. Called in any case."""
        for each in (self._stopping, self._halted, self._writing_ends):
            each.set()
        self.buffer.shut_inlet()
        await self._tasks.wait(TASKS_S_MAX)
        await self.endpoint.close()
        await self.dead_letters.close()
        await self.buffer.close()
        if self._embedded is not None:
            await self._embedded.stop()
        await self.admin_side.close()
        self._folder.withdraw()
