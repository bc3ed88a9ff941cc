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
from ingest.admin.dashboard.tail import Observed, ObservedDeadLetters, Tail
from ingest.app import housekeeping
from ingest.app.admin import AdminSide
from ingest.app.buffer import keep_rest, make_buffer, open_buffer
from ingest.app.database import make_target
from ingest.app.health import FirstContact, Health
from ingest.app.metrics_and_causes import advice
from ingest.app.post_rules import folder_letters, open_tokens
from ingest.app.process import Process, begun, greeting_lines, refuse_left_stream
from ingest.app.receiving import leave, make_endpoint, taking
from ingest.app.space import DiskSpace, Fill
from ingest.app.writing import HANDLERS_GRACE_S, WritingHalf
from ingest.config.database_url import RereadUrl
from ingest.config.settings import Settings, split_address
from ingest.embedded.postgres import EmbeddedPostgres
from ingest.http import tls
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.receiver import senders
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.system import logs
from ingest.system.clock import unix_us
from ingest.system.service_manager import Notifier, given_sockets
from ingest.system.state_folder import ServiceInfo, StateFolder


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
        process = Process("service", announce, Notifier.from_environment())
        words = advice(settings, url_origin)
        return await Service(settings, folder, process, words, terminal=terminal).run()


class Service:
    """One running service: its parts, and their order."""

    def __init__(
        self,
        settings: Settings,
        folder: StateFolder,
        process: Process,
        words: Mapping[str, str],
        *,
        terminal: bool,
    ) -> None:
        self._settings = settings
        self._given = given_sockets()
        self._target = make_target(settings)
        self._terminal = terminal
        self._folder = folder
        self._process = process
        self._token = settings.admin_token or secrets.token_urlsafe(24)
        self._embedded: EmbeddedPostgres | None = None
        if not settings.database_url:
            self._embedded = EmbeddedPostgres(folder.postgres)
        self._info: ServiceInfo | None = None  # what was published
        self.ledger = Ledger()
        self.buffer = make_buffer(settings, folder, self.ledger)
        self.writing = WritingHalf(
            settings,
            outlet=self.buffer,
            ledger=self.ledger,
            keeps_rest=lambda: settings.buffer == "journal" and not self.buffer.broken,
            # The embedded database is on the disk that we know.
            disk_free_bytes=lambda: self.health.fill.disk_free_bytes if self._embedded else None,
        )
        self.dead_letters = folder_letters(
            settings, folder.dead_letters, auto_replay=settings.dlq_auto_replay
        )
        self._token_file = open_tokens(settings)
        self._reread = RereadUrl(settings)
        self._connect_parts(words)

    def _connect_parts(self, words: Mapping[str, str]) -> None:
        settings, database_state = self._settings, self.writing.database_state
        refused_posts = senders.RefusedPosts(self.ledger)
        self.health = Health(
            buffer=self.buffer.stats,
            database_state=database_state,
            url_fault=self._reread.fault,
            disk=DiskSpace(
                self._folder,
                free_bytes_min=settings.disk_free_bytes_min,
                broken=lambda: self.buffer.broken,
            ),
            dead_letters=self.dead_letters.stats,
            parts=(*self.writing.troubles, lambda: self.endpoint.senders.not_stored()),  # noqa: PLW0108
            ledger=self.ledger,
            fill=Fill(settings, lambda: self.buffer.journal_stats().size_bytes),
            advice=words,
        )
        may_take = settings.buffer == "journal" and bool(settings.database_url)
        self.first_contact = FirstContact(
            self.health, self._folder, may_take=may_take, target=self._target
        )
        own = Observed(
            self.ledger,
            self.health.readyz,
            Tail(),
            lambda: database_state.message,
            refused_posts.listed,
        )
        self.admin_side = AdminSide(
            settings,
            own,
            dead_letters=self.dead_letters,
            token=self._token,
            tokens=self._token_file.tokens,
            release_hold=self.writing.release_hold,
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
            on_decoded=own.tail.observe,
            tokens=self._token_file.tokens,
        )
        self.ledger.gauges = self.health.gauges(
            (senders.METRICS, lambda: self.endpoint.senders),
            (housekeeping.METRICS, lambda: self.writing.housekeeping),
            (tls.METRICS, lambda: self.endpoint.certificate),
            (tokens.METRICS, lambda: self._token_file.tokens),
            journal=self.buffer.journal_stats,
        )

    async def run(self) -> int:
        """Start, wait for a signal, stop; return the exit code."""
        return await self._process.run(
            self._start, self._stop, self._close, in_words=self.health.in_words
        )

    # Start

    async def _start(self) -> None:
        settings = self._settings
        for work in open_buffer(self.buffer, settings, self._folder, self._process.announce):
            self._process.spawn(work(self._process.stopping))
        await self.dead_letters.open()
        data, admin = self._given
        accepts = taking(lambda: not self.health.starting, self._process.stopping)
        listen = await self.endpoint.start(*split_address(settings.listen), data, accepts)
        admin_listen = await self.admin_side.start(listen, admin)
        self._process.notifier.ready()
        self._process.spawn(self._token_file.follow(self._process.halted))
        self._process.spawn(self.health.run(self._process.stopping))
        self._process.spawn(self.admin_side.dashboard.run(self._process.halted))
        embedded = self._embedded
        if embedded is not None:
            await embedded.start()
        url: DatabaseUrl = self._reread if embedded is None else lambda: embedded.url
        self.admin_side.database(url, self.writing.known)
        self._info = ServiceInfo(
            pid=getpid(),
            version=__version__,
            listen=listen,
            admin_listen=admin_listen,
            database_url=url(),
            token=self._token,
            page=self.admin_side.page_address(with_key=True),
            started_us=unix_us(),
            cert_file=settings.tls_cert_file and str(Path(settings.tls_cert_file).absolute()),
            target=self._target.in_sql,
            is_open=not self.endpoint.needs_token,
        )
        self._folder.publish(self._info)
        self.first_contact.begin(url())
        writing = self.writing
        self._process.spawn(self._open_database(url))
        await writing.first_try.wait()
        if writing.refusal:
            raise StartError(writing.refusal)
        state = writing.database_state
        for line in greeting_lines(
            settings,
            folder=self._folder.path,
            listen=listen,
            admin_listen=admin_listen,
            needs_token=self.endpoint.needs_token,
            page=self.admin_side.page_address(with_key=self._terminal),
            table=self._target.name,
            waiting="" if state.is_open else state.message or "no answer yet",
        ):
            self._process.announce(line)

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
            self._process.stopping,
            posts_taken=lambda: not self.health.starting,
            on_away=self.first_contact.away,
            on_checked=self._checked,
        ):
            self.health.started()
            letters = self.dead_letters
            observed = ObservedDeadLetters(letters, self.admin_side.dashboard.tail)
            replayed = letters.backend.replay_source
            self.writing.start(observed, self._process, replayed, self.buffer)
            self._process.spawn(letters.tidy(self._process.stopping))

    # Stop

    async def _stop(self) -> Mapping[str, int]:
        """Drain; return the sums. Bounded by `drain_s_max` and the dead letters' disk."""
        if self._given.data:
            await leave(self.endpoint, self._process.halted)
        drain_s_max = self.writing.drain_s_max
        self.health.draining()
        halt = asyncio.create_task(self._process.halt(drain_s_max, self._abort))
        if self.writing.leaves_rest:  # posts that wait for their commit get their answer now
            await self.writing.finish()
            await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.endpoint.finish(drain_s_max + HANDLERS_GRACE_S)
        self.buffer.shut_inlet()
        await self.writing.finish()
        self._process.halted.set()
        await halt  # it aborts the connection that a start still waits for
        await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.endpoint.close()
        # Again, for a post whose dead letters were still being synced when its handler ended:
        await keep_rest(self.buffer, self.dead_letters, self.ledger)
        await self.dead_letters.close()
        ledger = self.ledger
        lost = max(0, ledger.imbalance) + ledger.held - self.buffer.stats().rows_kept
        return {
            "committed": ledger.committed + ledger.duplicate,
            "dead_lettered": sum(ledger.dead_lettered.values()),
            "held": ledger.held,
            "lost": lost,
        }

    def _abort(self) -> None:
        self.buffer.shut_inlet()
        self.writing.abort()

    async def _close(self) -> None:
        """Close everything, and stop the embedded database."""
        self._abort()
        await self._process.wait_tasks()
        await self.endpoint.close()
        await self.dead_letters.close()
        await self.buffer.close()
        if self._embedded is not None:
            await self._embedded.stop()
        await self.admin_side.close()
        self._folder.withdraw()
