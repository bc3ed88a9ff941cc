"""The service: the pipeline in a process of its own, with its ports and its embedded database.

pipeline/core.py has the path of the readings, `admin` the admin port.
Order of the start: state folder, journal, dead letters, ports (they answer `starting`), database,
writers, replay.
Order of the stop: connections end, if the process manager keeps their socket; the core is drained
and closed; then the embedded database and the admin port.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from os import getpid
from pathlib import Path

from msgspec.structs import replace

from ingest import __version__
from ingest.admin.dashboard.tail import Observed, ObservedDeadLetters, Tail
from ingest.app.admin import AdminSide
from ingest.app.metrics_and_causes import advice
from ingest.app.pipeline.core import Core
from ingest.app.post_rules import shown_sources
from ingest.app.process import (
    Process,
    begun,
    greeting_lines,
    refuse_left_stream,
    refuse_other_database,
)
from ingest.app.receiving import leave, taking
from ingest.config.settings import Settings, split_address
from ingest.embedded.postgres import EmbeddedPostgres
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
        refuse_other_database(folder, settings)
        return await Service(
            settings,
            folder,
            Process("service", announce, Notifier.from_environment()),
            advice(settings, url_origin),
            terminal=terminal,
        ).run()


class Service:
    """One running service: its core and what it has around it."""

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
        self._terminal = terminal
        self._folder = folder
        self._process = process
        self._fix_url = words["fix_url"]
        self._token = settings.admin_token or secrets.token_urlsafe(24)
        self._embedded = None if settings.database_url else EmbeddedPostgres(folder.postgres)
        self._info: ServiceInfo | None = None  # what was published
        tail = Tail()
        core = self.core = Core(
            settings, folder, process, words, process.announce, on_decoded=tail.observe
        )
        self._letters = ObservedDeadLetters(core.dead_letters, tail)
        own = Observed(
            core.ledger,
            core.health.readyz,
            tail,
            lambda: core.writing.database_state.message,
            core.refused_posts.listed,
        )
        self.admin_side = AdminSide(
            settings,
            own,
            dead_letters=core.dead_letters,
            token=self._token,
            tokens=core.token_file.tokens,
            release_hold=core.writing.release_hold,
        )

    async def run(self) -> int:
        """Start, wait for a signal, stop; return the exit code."""
        return await self._process.run(
            self._start, self._stop, self._close, in_words=self.core.health.in_words
        )

    async def _start(self) -> None:
        settings, core, process = self._settings, self.core, self._process
        await core.open()
        data, admin = self._given
        accepts = taking(lambda: not core.health.starting, process.stopping)
        listen = await core.endpoint.start(*split_address(settings.listen), data, accepts)
        admin_listen = await self.admin_side.start(listen, admin)
        process.notifier.ready()
        process.spawn(self.admin_side.dashboard.run(process.halted))
        embedded = self._embedded
        if embedded is not None:
            await embedded.start()
        url: DatabaseUrl = core.reread if embedded is None else lambda: embedded.url
        self.admin_side.database(url, core.writing.known)
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
            target=core.target.in_sql,
            is_open=not core.endpoint.needs_token,
            fix_url=self._fix_url,
        )
        self._folder.publish(self._info)
        await core.connect(url, letters=self._letters, on_checked=self._checked)
        state = core.writing.database_state
        for line in greeting_lines(
            settings,
            folder=self._folder.path,
            listen=listen,
            admin_listen=admin_listen,
            needs_token=core.endpoint.needs_token,
            page=self.admin_side.page_address(with_key=self._terminal),
            target=core.target,
            sources=shown_sources(settings),
            waiting="" if state.is_open else state.message or "no answer yet",
        ):
            process.announce(line)

    def _checked(self, url: str) -> None:
        """A connection has found the table right: tell commands a new URL."""
        if self._info is not None and url != self._info.database_url:
            self._info = replace(self._info, database_url=url)
            try:
                self._folder.publish(self._info)
            except OSError as error:  # commands do not find the new URL; the service goes on
                logs.get_logger("service").warning("url_not_published", why=str(error))

    async def _stop(self) -> Mapping[str, int]:
        """Drain; return the sums. Bounded by `drain_s_max` and the dead letters' disk."""
        if self._given.data:
            await leave(self.core.endpoint, self._process.halted)
        return (await self.core.drain())._asdict()

    async def _close(self) -> None:
        """Close everything, and stop the embedded database."""
        await self.core.close()
        if self._embedded is not None:
            await self._embedded.stop()
        await self.admin_side.close()
        self._folder.withdraw()
