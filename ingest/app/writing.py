"""The composition root of the second half: from the buffer's blocks to rows in the table.

It connects sinks, database state, circuit breaker, gatherer, writers, and the automatic replay. Its
parameters are the buffer's outlet and the dead letters.
Order of the calls: `open`, `start`; after the buffer was shut, `finish`, which `abort` shortens.
Promises: a task that has readings is never cancelled.
Does not: import HTTP, the formats or the receiver, so a program can write without taking posts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingest.app.database import make_sink, make_target, partitions_ahead, timeouts
from ingest.app.housekeeping import Housekeeping
from ingest.app.process import Tasks
from ingest.app.space import Backlog, Waiting
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings, hold_probe_s
from ingest.dead_letters.auto_replay import (
    REPLAY_PAUSE_S,
    Replayer,
    ReplaySource,
)
from ingest.model.causes import (
    NO_SUCH_HOST,
    NOT_DURABLE,
    SCHEMA,
    TABLES,
    Trouble,
    Verdict,
    WriteFailed,
)
from ingest.model.ledger import Ledger
from ingest.model.ports import DeadLetters, Inlet, Outlet, Sink
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.connection import DatabaseUrl
from ingest.sinks.postgres.housekeeping.making import make_column_tables, make_table
from ingest.system.clock import monotonic_s
from ingest.writer.batch import BatchCap, Gatherer
from ingest.writer.database_state import ROWS_MAX, WINDOW_ROWS, CircuitBreaker, DatabaseState
from ingest.writer.writer import Writer, stop_connecting

HANDLERS_GRACE_S = 1.0  # for posts in work, and for what nobody waits for
WAIT_S_MIN = 0.1  # the first pause between tries of the database; it grows
LEAVING_S = 0.1  # between two looks whether the database went away during a drain


class WritingHalf:
    """The writers of one process and what they share.

    `keeps_rest` says whether the buffer keeps the rows that no writer stores until the next start.
    `stream` returns what of the stream is not done, if there is one. `disk_free_bytes` returns the
    room on the disk of the database, if that is known.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        outlet: Outlet,
        ledger: Ledger,
        keeps_rest: Callable[[], bool] = lambda: False,
        stream: Callable[[], Waiting | None] = lambda: None,
        disk_free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._keeps_rest = keeps_rest
        self._disk_free_bytes = disk_free_bytes
        self._settings = settings
        self._outlet = outlet
        self._ledger = ledger
        self.halted = asyncio.Event()  # the writers end now
        self._tasks: list[asyncio.Task[None]] = []
        self.known = KnownServer(settings.writers, make_target(settings))
        self.sinks: list[Sink] = []  # one for each writer
        self.first_try = asyncio.Event()  # the database was tried once, with or without success
        self.refusal = ""  # the result of that try, if the process must not start
        self.checked = False  # the table was checked; writes may be paused by what was found
        self.database_state = DatabaseState(
            wait_s_min=min(WAIT_S_MIN, settings.wait_s_max),
            wait_s_max=settings.wait_s_max,
            hold_probe_s=hold_probe_s(settings),
        )
        self.breaker = CircuitBreaker(window_rows=WINDOW_ROWS, rows_max=ROWS_MAX)
        self.housekeeping: Housekeeping | None = None  # once the sinks have been made
        # What the writers and the housekeeping find wrong, for Health.
        self.troubles: tuple[Callable[[], Trouble], ...] = (
            Backlog(self.database_state, outlet.stats, stream).trouble,
            lambda: self.housekeeping.trouble() if self.housekeeping else Trouble(),
        )
        self.cap = BatchCap(
            settings.batch_rows,
            settings.batch_rows_max,
            write_s_max=timeouts(settings).statement_s_max,
        )

    async def open(
        self,
        url: DatabaseUrl,
        stopping: asyncio.Event,
        *,
        posts_taken: Callable[[], bool],
        on_away: Callable[[str], None],
        on_checked: Callable[[str], None],
    ) -> bool:
        """Make the sinks, unless `sinks` has some; try until the table has been checked.

        A table that is missing is made.

        `on_away` is called with the error of each try while the server is away, `on_checked` with
        the URL after each good check, also later. Once posts are taken no check ends the process.
        Returns True if `start` may follow; writes may be paused then. Returns False if nothing will
        be written, because the process stops or must not start (`refusal`).
        """
        if not self.sinks:
            self._make_sinks(url, on_checked)
        may_apply = self._settings.schema_apply
        while not (stopping.is_set() or self.checked):
            try:
                await self._open_tables(url())
            except WriteFailed as failure:
                if stopping.is_set():
                    return False  # the stop aborted it
                if failure.reason == SCHEMA and may_apply:
                    may_apply = not await self._make_table(url())
                    if may_apply:  # the server could not be reached
                        await self._try_later()
                    continue
                if failure.reason in (NOT_DURABLE, TABLES) and not (
                    self.first_try.is_set() or posts_taken()
                ):
                    self.refusal = failure.message
                    break
                self.database_state.failed(failure)
                self.checked = failure.reason in (SCHEMA, NOT_DURABLE)
                # A refusal, or an unknown host name, is an answer.
                if failure.verdict is Verdict.WAIT and failure.reason != NO_SUCH_HOST:
                    on_away(failure.message)
                if not self.checked:
                    await self._try_later()
            else:
                self.database_state.opened()
                self.checked = True
        if self.checked or self.refusal:
            self.first_try.set()
        return self.checked

    def _make_sinks(self, url: DatabaseUrl, on_checked: Callable[[str], None]) -> None:
        housekeeping = self.housekeeping = Housekeeping(
            self._settings, url, disk_free_bytes=self._disk_free_bytes
        )
        self.sinks += [
            make_sink(
                url,
                self._settings,
                name=f"iot-ingest writer {number}",
                known=self.known,
                on_checked=on_checked,
                late=housekeeping.late,
            )
            for number in range(self._settings.writers)
        ]

    async def _make_table(self, url: str) -> bool:
        settings = self._settings
        return await make_table(
            url,
            self.known.target,
            timeouts(settings),
            span=settings.partition_span,
            ahead=partitions_ahead(settings),
        )

    async def _open_tables(self, url: str) -> None:
        try:
            await self.sinks[0].open()
        except WriteFailed as failure:
            if failure.reason in (SCHEMA, NOT_DURABLE):  # the writers may go on after these
                await self._make_column_tables(url, may_make=False)
            raise
        await self._make_column_tables(url, may_make=self._settings.schema_apply)

    async def _make_column_tables(self, url: str, *, may_make: bool) -> None:
        settings = self._settings
        tables = make_tables(settings).all
        try:
            await make_column_tables(
                url,
                self.known.target,
                tables,
                timeouts(settings),
                may_make=may_make,
                span=settings.partition_span,
                ahead=partitions_ahead(settings),
            )
        except WriteFailed as failure:
            if tables or failure.reason == TABLES:  # a look that nobody waits for may fail
                raise

    async def _try_later(self) -> None:
        self.first_try.set()
        await self.database_state.pause(self.halted)

    def make_writers(self, dead_letters: DeadLetters) -> list[Writer]:
        """Return a writer for each sink."""
        settings = self._settings
        gatherer = Gatherer(self._outlet, self.cap, linger_s=settings.batch_linger_s)
        return [
            Writer(
                retries_max=settings.retries_max,
                retry_s_max=settings.wait_s_max,
                outlet=self._outlet,
                gatherer=gatherer,
                cap=self.cap,
                sink=sink,
                sinks=self.sinks,
                database_state=self.database_state,
                breaker=self.breaker,
                dead_letters=dead_letters,
                ledger=self._ledger,
                halted=self.halted,
            )
            for sink in self.sinks
        ]

    def make_replayer(self, source: Callable[[float], ReplaySource], inlet: Inlet) -> Replayer:
        """Return the automatic replay, which sends dead letters through the buffer.

        `source` returns them, if they are searched for so often: see LetterBackend.replay_source.
        """
        settings = self._settings
        return Replayer(
            source(REPLAY_PAUSE_S),
            inlet=inlet,
            outlet_stats=self._outlet.stats,
            ledger=self._ledger,
            database_up=lambda: self.database_state.is_open,
            tables=make_tables(settings),
            post_rows_max=settings.post_rows_max,
            rows_per_s=settings.dlq_replay_rows_per_s,
            pause_s=REPLAY_PAUSE_S,
        )

    def start(
        self,
        dead_letters: DeadLetters,
        tasks: Tasks,
        replayed: Callable[[float], ReplaySource],
        inlet: Inlet,
    ) -> None:
        """Start the writers, the housekeeping, and the automatic replay if it is wanted.

        `replayed` and `inlet`: see make_replayer.
        """
        self._tasks = [tasks.spawn(each.run()) for each in self.make_writers(dead_letters)]
        if self.housekeeping is not None:
            tasks.spawn(self.housekeeping.run(self.halted))
        if self._settings.dlq_auto_replay:
            replayer = self.make_replayer(replayed, inlet)
            tasks.spawn(replayer.run(tasks.stopping))

    def release_hold(self, dead_letter: bool) -> bool:
        """Try now; with `dead_letter` dead-letter the rows that the database refuses.

        Returns False if writes are not paused and the database is not away.
        """
        if dead_letter and self.database_state.hold_reason is not None:
            self.breaker.release(received_until_s=monotonic_s())
        if not self.database_state.is_open:
            self.database_state.nudge()
        return not self.database_state.is_open

    @property
    def leaves_rest(self) -> bool:
        """Whether a stop leaves the rest to the buffer now, and does not wait for the database."""
        return self._keeps_rest() and not self.database_state.is_open

    @property
    def drain_s_max(self) -> float:
        """How long a stop may take, the dead letters aside."""
        most = self._settings.drain_s_max
        return min(most, HANDLERS_GRACE_S) if self.leaves_rest else most

    async def finish(self) -> None:
        """Wait until the writers have emptied the buffer, which is shut, or are halted.

        If the buffer keeps the rest, they are halted if the database is away or writes are paused.
        """
        # Writers that wait for the database try once more; with an empty buffer they end.
        self.database_state.nudge()
        stop_connecting(self._outlet, self.sinks)
        left = set(self._tasks)
        while left:
            if self.leaves_rest:
                self.abort()
            _, left = await asyncio.wait(left, timeout=LEAVING_S)

    def abort(self) -> None:
        """End the writers now: abort all connections, so that writes in progress fail."""
        self.halted.set()
        for sink in self.sinks:
            sink.abort()
