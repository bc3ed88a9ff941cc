"""What the supervisor itself does at the broker: the dead letters of its page, and the take-over.

The take-over moves what `ingest serve` has left in this state folder into the streams: first its
dead letters, then its journal. Posts come in meanwhile.
Promises: a stop ends it at once, also if the broker is away. What was not moved stays where it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from ingest.app.broker import stream_letters
from ingest.app.buffer import make_buffer
from ingest.app.carry import carry
from ingest.broker.connection import BrokerConnection
from ingest.broker.envelope import Address
from ingest.broker.publishing import Publisher
from ingest.broker.roles import STREAM, SUBJECT
from ingest.broker.waiting import unless
from ingest.buffers.journal.reader import segment_files
from ingest.buffers.stream.inlet import StreamInlet
from ingest.config.settings import Settings
from ingest.dead_letters.folder.store import FolderLetterStore
from ingest.dead_letters.stream.carry import into_stream
from ingest.model.errors import IngestError
from ingest.model.ledger import Ledger
from ingest.system.clock import sleep_unless
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder

AGAIN_S = 10.0

_log = get_logger("up")


class OwnBroker:
    """The supervisor's connection. `where` is asked before each connect, once `run` has begun.

    `ledger` counts the readings that are moved. Make it in the running event loop.
    """

    def __init__(
        self, settings: Settings, folder: StateFolder, where: Callable[[], Address]
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._connection = BrokerConnection(where, "admin")
        self.dead_letters = stream_letters(settings, self._connection)
        self._publisher = Publisher(
            self._connection,
            subject=SUBJECT,
            stream=STREAM,
            wait_s_max=settings.publish_wait_s_max,
        )
        self._cut = asyncio.Event()
        self._connected: asyncio.Task[None] | None = None

    def connect(self) -> None:
        """Begin to connect: the broker is there."""
        self._connected = asyncio.create_task(self._connection.run(self._cut))

    async def take_over(self, ledger: Ledger, stopping: asyncio.Event) -> None:
        """Move what `ingest serve` has left, until nothing is left or the event is set."""
        letters = readings = False
        while not stopping.is_set() and not (letters and readings):
            # One must not wait for the other: the stream of the dead letters may be full.
            letters = letters or await unless(stopping, self._tried(self._take_letters()))
            readings = readings or await self._tried(self._take_journal(ledger, stopping))
            if not (letters and readings):
                await sleep_unless(stopping, AGAIN_S)

    async def _tried(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Return whether nothing is left; after an error something is."""
        try:
            return await work
        except (IngestError, OSError) as error:
            _log.warning("take_over_failed", why=str(error))
            return False

    async def _take_letters(self) -> bool:
        """Move the dead letters. Those that are too large for a message stay in the files."""
        await into_stream(FolderLetterStore(self._folder.dead_letters), self.dead_letters.backend)
        return True

    async def _take_journal(self, ledger: Ledger, stopping: asyncio.Event) -> bool:
        """Return whether the journal is empty."""
        if not segment_files(self._folder.journal):
            return True
        settings = self._settings
        own = Ledger()  # of the two buffers: `ledger` counts a reading once it has been moved
        journal = make_buffer(replace(settings, buffer="journal"), self._folder, own)
        inlet = StreamInlet(
            self._publisher,
            own,
            life=os.urandom(6).hex(),
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=settings.publish_wait_s_max,
            group_rows_max=settings.batch_rows_max,
            group_bytes_max=settings.group_bytes_max,
            groups_in_flight=settings.groups_in_flight,
            wait_s_max=settings.publish_wait_s_max,
        )

        def moved(rows: int) -> None:
            ledger.recovered += rows
            ledger.published += rows

        scan, load = journal.open()
        loading: asyncio.Task[None] | None = None
        ended = asyncio.Event()
        giving_up = asyncio.create_task(_close_at(stopping, inlet))
        try:
            await scan(stopping)
            loading = asyncio.create_task(load(ended))
            is_empty = await carry(
                journal, inlet, stopping, left=lambda: journal.stats().rows, moved=moved
            )
            _log.info("journal_moved", readings=ledger.recovered, left=journal.stats().rows)
            return is_empty
        finally:
            ended.set()
            journal.shut_inlet()
            giving_up.cancel()
            await inlet.close()
            if loading is not None:
                await loading
            await journal.close()

    async def close(self) -> None:
        """End the connection. Repeatable."""
        await self.dead_letters.close()
        self._cut.set()
        if self._connected is not None:
            await self._connected


async def _close_at(stopping: asyncio.Event, inlet: StreamInlet) -> None:
    """Give up what is under way as soon as the event is set: the journal still has it."""
    await stopping.wait()
    await inlet.close()
