"""What `ingest up` has left in the broker of this state folder comes back to `ingest serve`.

The embedded broker runs for that time alone. Its dead letters go into the files, its readings into
the journal, while posts already come in. Then the streams are empty, unless a forwarder has not
done its part, or a message is no block of readings: these stay.
Promises: nothing leaves the broker before this process has it on the disk. After a kill in between
it is in both places, and the table's key absorbs it.
"""

from __future__ import annotations

import asyncio
import contextlib

from ingest.app.broker import make_embedded, wanted_stream
from ingest.app.carry import carry
from ingest.broker import manage
from ingest.broker.connection import BrokerConnection, connected, session_type
from ingest.broker.messages import StreamMessages
from ingest.broker.pulling import Delivery, Puller, Skipped
from ingest.broker.roles import DEAD_LETTERS, STREAM, WRITER
from ingest.broker.stream_state import StreamState, state_of
from ingest.buffers.stream.outlet import StreamOutlet
from ingest.config.settings import Settings
from ingest.dead_letters.folder_store import FolderLetterStore
from ingest.dead_letters.stream.carry import into_files
from ingest.dead_letters.stream.store import StreamLetterStore
from ingest.embedded.broker import EmbeddedBroker
from ingest.model.errors import IngestError
from ingest.model.ledger import BrokerFigures, Ledger
from ingest.model.ports import Inlet
from ingest.system.clock import sleep_unless
from ingest.system.logs import get_logger
from ingest.system.state_folder import StateFolder
from ingest.system.stream_mark import MarkFile, StreamMark

AGAIN_S = 10.0
LOOK_S = 0.5

_log = get_logger("service")


class TakeBack:
    """Moves what is in the streams into `inlet` and the files. `ledger` counts the readings.

    Raises StartError if there may be something, and the library for it is not installed.
    """

    def __init__(
        self, settings: Settings, folder: StateFolder, inlet: Inlet, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._inlet = inlet
        self._ledger = ledger
        self._left = 0  # messages that are not done, at the last look
        self._left_there: set[int] = set()  # places of messages that are no block
        self._is_whole = True
        self._skipped_count = 0
        self._has_work = folder.broker.exists() and settings.buffer == "journal"
        if self._has_work:
            session_type()  # loaded before the first post comes

    def figures(self) -> BrokerFigures:
        """Return what is lost of the stream, if anything is."""
        return {"stream_skipped_total": self._skipped_count} if self._skipped_count else {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Move all, until nothing is left or the event is set."""
        while self._has_work and not stopping.is_set():
            try:
                if await self._take(stopping):
                    return
            except (IngestError, OSError) as error:
                _log.warning("take_over_failed", why=str(error))
            await sleep_unless(stopping, AGAIN_S)

    async def _take(self, stopping: asyncio.Event) -> bool:
        """Return whether nothing is left."""
        server = make_embedded(self._settings, self._folder)
        await server.start()
        try:
            async with connected(server.published.address("admin"), "admin") as admin:
                is_empty = True
                if await _look(admin) is not None:
                    await manage.apply(admin, wanted_stream(self._settings))
                    is_empty = await self._take_readings(server, admin, stopping)
                messages = StreamMessages(admin, DEAD_LETTERS)
                if await messages.find_state() is not None:
                    files = FolderLetterStore(self._folder.dead_letters)
                    segment_bytes = self._settings.dlq_segment_bytes
                    await into_files(
                        StreamLetterStore(messages), files, segment_bytes=segment_bytes
                    )
                return is_empty
        finally:
            await server.stop()

    async def _take_readings(
        self, server: EmbeddedBroker, admin: BrokerConnection, stopping: asyncio.Event
    ) -> bool:
        """Move the messages into the journal; return whether nothing is left."""
        settings = self._settings
        outlet = StreamOutlet(
            Ledger(),  # `self._ledger` counts a reading once it has been moved
            self._leave,
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=settings.put_wait_s_max,
        )
        ended = asyncio.Event()
        async with connected(server.published.address("writer"), "writer") as connection:
            puller = Puller(
                connection,
                stream=STREAM,
                consumer=WRITER,
                take=outlet.deliver,
                skipped=self._skipped,
            )
            outlet.pull_from(puller)
            work = [
                asyncio.create_task(each) for each in (puller.run(ended), self._count(admin, ended))
            ]
            try:
                self._left = 1  # until the first look
                return await carry(
                    outlet, self._inlet, stopping, left=lambda: self._left, moved=self._moved
                )
            finally:
                outlet.shut_inlet()
                await outlet.keep_rest()
                ended.set()
                await asyncio.wait(work)
                await self._purge(admin)

    async def _purge(self, admin: BrokerConnection) -> None:
        """Remove what has been moved, if nothing was left out, and nobody else needs it."""
        found = await manage.look(admin, wanted_stream(self._settings).names)
        state = state_of(found)
        if state is None or not state.consumer_made or state.waiting or state.pending:
            return
        if not (self._is_whole and None not in found.others.values()):
            return
        floors = [each["ack_floor"]["stream_seq"] for each in found.others.values() if each]
        to = min((state.last, *floors))
        await MarkFile(self._folder.path).note(StreamMark(state.made, purged_to=to))
        await manage.purge(admin, to)

    def _leave(self, delivery: Delivery, why: str) -> None:
        """Leave a message that is no block where it is: `ingest up` sets it aside."""
        if delivery.place not in self._left_there:
            self._left_there.add(delivery.place)
            _log.error("message_not_ours", place=delivery.place, why=why)
        self._is_whole = False

    def _skipped(self, skipped: Skipped) -> None:
        """The broker has not delivered these. They stay in the stream, if it has them at all."""
        self._is_whole = False
        self._skipped_count += skipped.last - skipped.first + 1
        _log.critical("stream_messages_skipped", place=skipped.first, why="not delivered")

    def _moved(self, rows: int) -> None:
        self._ledger.recovered += rows
        if rows:
            _log.info("readings_taken_back", rows=rows)

    async def _count(self, admin: BrokerConnection, ended: asyncio.Event) -> None:
        """Keep the number of messages that are not done."""
        while not ended.is_set():
            with contextlib.suppress(IngestError):  # the broker is away for a moment
                state = await _look(admin)
                waiting = 0 if state is None else state.waiting + state.pending
                self._left = max(0, waiting - len(self._left_there))
            await sleep_unless(ended, LOOK_S)


async def _look(admin: BrokerConnection) -> StreamState | None:
    return state_of(await manage.look(admin))
