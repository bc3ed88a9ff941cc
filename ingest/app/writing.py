"""The composition root of the second half: from the buffer's blocks to rows in the table.

It connects sinks, database state, circuit breaker, gatherer, writers, and the automatic replay. Its
parameters are the buffer's outlet and the dead letters.
Order of the calls: `open`, `start`; after the buffer was shut, `finish`, which `abort` shortens.
Promises: a task that has readings is never cancelled.
Does not: import HTTP, the formats or the receiver, so a program can write without taking posts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import OwnFolder, Replayer
from ingest.model.ledger import Ledger
from ingest.model.ports import DeadLetters, Inlet, Outlet, Sink
from ingest.model.verdict import LETTERS_FULL, NOT_DURABLE, SCHEMA, WriteFailed
from ingest.sinks.postgres.connection import Timeouts
from ingest.sinks.postgres.make_table import make_table
from ingest.sinks.postgres.sink import SinkPostgres
from ingest.system.clock import monotonic_s
from ingest.writer.batch import BatchCap, Gatherer
from ingest.writer.breaker import CircuitBreaker
from ingest.writer.connecting import stop_connecting
from ingest.writer.database_state import DatabaseState
from ingest.writer.writer import Writer


def make_sink(url: str, settings: Settings, *, name: str = "iot-ingest") -> SinkPostgres:
    """Return a sink that connects to `url` at its first use."""
    return SinkPostgres(
        url,
        _timeouts(settings),
        method=settings.write_method,
        unsafe=settings.database_unsafe,
        name=name,
    )


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(
        connect_s_max=settings.connect_s_max,
        lock_s_max=settings.lock_s_max,
        statement_s_max=settings.statement_s_max,
        command_s_max=settings.command_s_max,
        schema_check_s=settings.schema_check_s,
    )


class WritingHalf:
    """The writers of one process and what they share. `halted` stops them at once."""

    def __init__(
        self, settings: Settings, *, outlet: Outlet, ledger: Ledger, halted: asyncio.Event
    ) -> None:
        self._settings = settings
        self._outlet = outlet
        self._ledger = ledger
        self._halted = halted
        self._tasks: list[asyncio.Task[None]] = []
        self.sinks: list[Sink] = []  # one for each writer
        self.first_try = asyncio.Event()  # the database was tried once, with or without success
        self.refusal = ""  # the result of that try, if the process must not start
        self.database_state = DatabaseState(
            wait_s_min=settings.wait_s_min,
            wait_s_max=settings.wait_s_max,
            hold_probe_s=settings.hold_probe_s,
        )
        self.breaker = CircuitBreaker(
            window_rows=settings.breaker_window_rows, rows_max=settings.breaker_rows_max
        )
        self.cap = BatchCap(
            settings.batch_rows, settings.batch_rows_max, write_s_max=settings.statement_s_max
        )

    async def open(self, url: str, stopping: asyncio.Event) -> bool:
        """Make the sinks; try until the table has been checked, and make it if it is missing.

        Returns True if `start` may follow; writes may be paused then. Returns False if nothing will
        be written, because the process stops or must not start (`refusal`).
        """
        settings = self._settings
        self.sinks += [
            make_sink(url, settings, name=f"iot-ingest writer {number}")
            for number in range(settings.writers)
        ]
        may_apply = settings.schema_apply
        while not stopping.is_set():
            try:
                await self.sinks[0].open()
            except WriteFailed as failure:
                if stopping.is_set():
                    return False  # the stop aborted it
                if failure.reason == SCHEMA and may_apply:
                    may_apply = not await make_table(url, _timeouts(settings))
                    if may_apply:  # the server could not be reached
                        self.first_try.set()
                        await self.database_state.pause(self._halted)
                    continue
                if failure.reason == NOT_DURABLE and not self.first_try.is_set():
                    self.refusal = failure.message
                    self.first_try.set()
                    return False
                self.database_state.failed(failure)
                if failure.reason not in (SCHEMA, NOT_DURABLE):
                    self.first_try.set()
                    await self.database_state.pause(self._halted)
                    continue
            else:
                self.database_state.opened()
            self.first_try.set()
            return True
        return False

    def make_writers(self, dead_letters: DeadLetters) -> list[Writer]:
        """Return a writer for each sink."""
        settings = self._settings
        gatherer = Gatherer(self._outlet, self.cap, linger_s=settings.batch_linger_s)
        return [
            Writer(
                retries_max=settings.retries_max,
                retry_s_max=settings.retry_s_max,
                unknown_tries_max=settings.unknown_tries_max,
                outlet=self._outlet,
                gatherer=gatherer,
                cap=self.cap,
                sink=sink,
                sinks=self.sinks,
                database_state=self.database_state,
                breaker=self.breaker,
                dead_letters=dead_letters,
                ledger=self._ledger,
                halted=self._halted,
            )
            for sink in self.sinks
        ]

    def make_replayer(self, folder: OwnFolder, inlet: Inlet) -> Replayer:
        """Return the automatic replay, which sends dead letters of `folder` through the buffer."""
        settings = self._settings
        return Replayer(
            sends=settings.dlq_auto_replay,
            post_rows_max=settings.post_rows_max,
            rows_per_s=settings.dlq_replay_rows_per_s,
            pause_s=settings.dlq_replay_pause_s,
            folder=folder,
            inlet=inlet,
            outlet_stats=self._outlet.stats,
            ledger=self._ledger,
            database_up=lambda: self.database_state.is_open,
            letters_full=lambda: self.database_state.hold_reason == LETTERS_FULL,
        )

    def start(
        self,
        dead_letters: DeadLetters,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        """Start the writers, each in a task that `spawn` makes."""
        self._tasks = [spawn(each.run()) for each in self.make_writers(dead_letters)]

    def release_hold(self, dead_letter: bool) -> bool:
        """Try now; with `dead_letter` dead-letter the rows that the database refuses.

        Returns False if writes are not paused and the database is not away.
        """
        if dead_letter and self.database_state.hold_reason is not None:
            self.breaker.release(received_until_s=monotonic_s())
        if not self.database_state.is_open:
            self.database_state.nudge()
        return not self.database_state.is_open

    async def finish(self) -> None:
        """Wait until the writers have emptied the buffer, which is shut, or are halted."""
        # Writers that wait for the database try once more; with an empty buffer they end.
        self.database_state.nudge()
        if self._tasks:
            stop_connecting(self._outlet, self.sinks)
            await asyncio.wait(self._tasks)

    def abort(self) -> None:
        """Abort all connections, so that writes in progress fail. Call it after `halted` is set."""
        for sink in self.sinks:
            sink.abort()
