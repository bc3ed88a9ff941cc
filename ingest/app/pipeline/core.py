"""The pipeline without a process: its parts, and the order in which they start and stop.

From decoded posts to rows in the table: journal, writers, dead letters, housekeeping, health. Who
has it decides when it ends: app/service.py is a process, pipeline.py is for the programs of others.
`receiving` makes the first half of the path, `writing` the second.
Order of the stop: no new posts; posts in work are finished; the writers empty the buffer; rows that
are left stay in the journal or go to the dead letters; data port, dead letters, journal are closed.
Promises: a task that has readings is never cancelled.
Does not: touch signals, logs, limits of the process, ports, or standard output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ingest.access import tokens
from ingest.app import housekeeping
from ingest.app.buffer import changed_columns, keep_rest, make_buffer, note_columns, open_buffer
from ingest.app.database import make_target
from ingest.app.health import FirstContact, Health
from ingest.app.post_rules import folder_letters, open_tokens
from ingest.app.process import Tasks
from ingest.app.receiving import make_endpoint
from ingest.app.space import DiskSpace, Fill
from ingest.app.writing import HANDLERS_GRACE_S, WritingHalf
from ingest.config.database_url import RereadUrl
from ingest.config.settings import Settings
from ingest.formats.post import Decoded
from ingest.http import tls
from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.model.ports import DeadLetters
from ingest.receiver import senders
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.system.state_folder import StateFolder


class Drained(NamedTuple):
    """What became of all readings. `held`: the journal keeps them for the next start."""

    committed: int
    dead_lettered: int
    held: int
    lost: int


class Core:
    """The parts. Call `open` and `connect`; then `drain`; and in any case `close`.

    `tasks` has its tasks and the events that end them. `words` are those of causes.FIELDS.
    `announce` gets lines for a person. `on_decoded`: see Endpoint.
    """

    def __init__(
        self,
        settings: Settings,
        folder: StateFolder,
        tasks: Tasks,
        words: Mapping[str, str],
        announce: Callable[[str], None],
        *,
        on_decoded: Callable[[Decoded], None] | None = None,
    ) -> None:
        self._settings, self._folder, self._announce = settings, folder, announce
        self.tasks = tasks
        self.target = make_target(settings)
        self.reread = RereadUrl(settings)
        self.ledger = Ledger()
        self.buffer = make_buffer(settings, folder, self.ledger)
        self.writing = WritingHalf(
            settings,
            outlet=self.buffer,
            ledger=self.ledger,
            keeps_rest=lambda: settings.buffer == "journal" and not self.buffer.broken,
            # The embedded database is on the disk that we know.
            disk_free_bytes=lambda: (
                None if settings.database_url else self.health.fill.disk_free_bytes
            ),
        )
        self.dead_letters = folder_letters(
            settings, folder.dead_letters, auto_replay=settings.dlq_auto_replay
        )
        self.token_file = open_tokens(settings)
        self.refused_posts = senders.RefusedPosts(self.ledger)
        self._connect_parts(words, on_decoded)

    def _connect_parts(
        self, words: Mapping[str, str], on_decoded: Callable[[Decoded], None] | None
    ) -> None:
        settings, database_state = self._settings, self.writing.database_state
        self.health = Health(
            buffer=self.buffer.stats,
            database_state=database_state,
            url_fault=self.reread.fault,
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
        self.first_contact = FirstContact(
            self.health.taking_unchecked,
            self._folder,
            may_take=settings.buffer == "journal"
            and bool(settings.database_url)
            and not changed_columns(self._folder, settings),
            is_embedded=not settings.database_url,
            target=self.target,
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
            on_refused=self.refused_posts.refused,
            on_decoded=on_decoded,
            tokens=self.token_file.tokens,
        )
        self.ledger.gauges = self.health.gauges(
            (senders.METRICS, lambda: self.endpoint.senders),
            (housekeeping.METRICS, lambda: self.writing.housekeeping),
            (tls.METRICS, lambda: self.endpoint.certificate),
            (tokens.METRICS, lambda: self.token_file.tokens),
            journal=self.buffer.journal_stats,
        )

    # Start

    async def open(self) -> None:
        """Open journal and dead letters: posts that come from now on are answered."""
        tasks = self.tasks
        for work in open_buffer(self.buffer, self._settings, self._folder, self._announce):
            tasks.spawn(work(tasks.stopping))
        await self.dead_letters.open()
        tasks.spawn(self.token_file.follow(tasks.halted))
        tasks.spawn(self.health.run(tasks.stopping))

    async def connect(
        self,
        url: DatabaseUrl,
        *,
        letters: DeadLetters,
        on_checked: Callable[[str], None],
    ) -> None:
        """Try the database once; when it is there, start writers, housekeeping and replay.

        `letters` are the dead letters of the writers. `on_checked` gets the URL after each good
        check of the table. Raises StartError if the database must not be used.
        """
        self.first_contact.begin(url())
        self.tasks.spawn(self._open_database(url, letters, on_checked))
        await self.writing.first_try.wait()
        if self.writing.refusal:
            raise StartError(self.writing.refusal)

    async def _open_database(
        self, url: DatabaseUrl, letters: DeadLetters, on_checked: Callable[[str], None]
    ) -> None:
        """Check the table; then accept posts and start writers and replay."""

        def checked(url: str) -> None:
            self.first_contact.checked(url)
            on_checked(url)

        if await self.writing.open(
            url,
            self.tasks.stopping,
            posts_taken=lambda: not self.health.starting,
            on_away=self.first_contact.away,
            on_checked=checked,
        ):
            note_columns(self._folder, self._settings)
            self.health.started()
            self.writing.start(
                letters, self.tasks, self.dead_letters.backend.replay_source, self.buffer
            )
            self.tasks.spawn(self.dead_letters.tidy(self.tasks.stopping))

    # Stop

    async def drain(self) -> Drained:
        """Finish posts; write what is left, or keep it.

        Bounded by `drain_s_max` and the dead letters' disk.
        """
        ledger, drain_s_max = self.ledger, self.writing.drain_s_max
        self.health.draining()
        halt = asyncio.create_task(self.tasks.halt(drain_s_max, self._abort))
        if self.writing.leaves_rest:  # posts that wait for their commit get their answer now
            await self.writing.finish()
            await keep_rest(self.buffer, self.dead_letters, ledger)
        await self.endpoint.finish(drain_s_max + HANDLERS_GRACE_S)
        self.buffer.shut_inlet()
        await self.writing.finish()
        self.tasks.halted.set()
        await halt  # it aborts the connection that a start still waits for
        await keep_rest(self.buffer, self.dead_letters, ledger)
        await self.endpoint.close()
        # Again, for a post whose dead letters were still being synced when its handler ended:
        await keep_rest(self.buffer, self.dead_letters, ledger)
        await self.dead_letters.close()
        return Drained(
            ledger.committed + ledger.duplicate,
            ledger.set_aside,
            ledger.held,
            max(0, ledger.imbalance) + ledger.held - self.buffer.stats().rows_kept,
        )

    def _abort(self) -> None:
        self.buffer.shut_inlet()
        self.writing.abort()

    async def close(self) -> None:
        """End all tasks, and close everything."""
        self.tasks.stopping.set()
        self.tasks.halted.set()
        self._abort()
        try:
            await self.tasks.wait_tasks()
            await self.endpoint.close()
            await self.dead_letters.close()
        finally:  # if this is cancelled, as at the end of asyncio.run, so are the tasks
            await self.tasks.wait_tasks()
            await self.buffer.close()
