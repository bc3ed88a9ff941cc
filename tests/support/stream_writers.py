"""Writers of a stream without a database: they pull, note what they got, and acknowledge."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.audit import Audit
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER, Address
from ingest.roles.nats.pulling import Delivery, Pull, Puller
from ingest.roles.nats.purge import StreamPurge
from ingest.system.state_folder import MarkFile
from tests.support.brokers import api, is_up

FEW = Pull(messages_max=1)


class StreamWriter:
    """A puller with its audit and its purge. `acknowledges` at once, or never."""

    def __init__(
        self,
        connection: BrokerConnection,
        pull: Pull,
        *,
        acknowledges: bool,
        mark: MarkFile,
    ) -> None:
        self.connection = connection
        self.acknowledges = acknowledges
        self.got: list[Delivery] = []
        self.passes_to: StreamWriter | None = None  # who pulls after each message of ours
        self.seen_alone: list[range] = []  # what the check of one reader finds
        self.puller = Puller(
            connection,
            consumer=WRITER,
            take=self._take,
            skipped=self.seen_alone.append,
            pull=pull,
        )
        self.audit = Audit(connection, self.puller, mark)
        self.purge = StreamPurge(
            connection,
            forwards=(),
            keep_s=0,
            checked_to=self.audit.checked_in,
            delivered_bytes=lambda: self.puller.delivered_bytes,
            mark=mark,
            forward_lag_bytes_max=1,
        )
        self.puller.wanted.set()

    @property
    def bodies(self) -> list[bytes]:
        """What came in, in order."""
        return [each.data for each in self.got]

    def _take(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        if self.acknowledges:
            self.puller.done([delivery])
        if self.passes_to is not None:
            self.puller.wanted.clear()
            self.passes_to.puller.wanted.set()


def new_mark() -> MarkFile:
    """Return a mark that says nothing yet."""
    return MarkFile(Path(tempfile.mkdtemp()))


def in_turns(one: StreamWriter, other: StreamWriter) -> None:
    """Let two writers, which do not pull yet, take one message each in turn."""
    one.passes_to, other.passes_to = other, one
    one.puller.wanted.set()


@asynccontextmanager
async def writing(
    server: EmbeddedBroker | Callable[[], Address],
    pull: Pull = FEW,
    *,
    acknowledges: bool = True,
    checks: bool = True,
    purges: bool = False,
    pulls: bool = True,
    mark: MarkFile | None = None,
) -> AsyncIterator[StreamWriter]:
    """Give a writer with a connection of its own."""
    where = server if callable(server) else lambda: server.published.address("writer")
    connection = BrokerConnection(where, "writer")
    writer = StreamWriter(connection, pull, acknowledges=acknowledges, mark=mark or new_mark())
    if not pulls:
        writer.puller.wanted.clear()
    stopping, stopping_connection = asyncio.Event(), asyncio.Event()
    connecting = asyncio.create_task(connection.run(stopping_connection))
    parts = [writer.puller.run(stopping)]
    parts += [writer.audit.run(stopping)] if checks else []
    parts += [writer.purge.run(stopping)] if purges else []
    running = [asyncio.create_task(each) for each in parts]
    try:
        await is_up(connection)
        yield writer
    finally:
        stopping.set()
        await asyncio.gather(*running)
        if checks:
            writer.audit.tell()
        stopping_connection.set()
        await connecting


async def first_place(admin: BrokerConnection) -> int:
    """Return the place of the first message of the stream."""
    place: int = (await api(admin, f"STREAM.INFO.{STREAM}"))["state"]["first_seq"]
    return place


async def purged(admin: BrokerConnection, to: int, *by: StreamPurge) -> None:
    """Wait until all up to a place is gone; let these purge meanwhile."""
    async with asyncio.timeout(30):
        while await first_place(admin) <= to:
            await asyncio.gather(*(each.purge() for each in by))
            await asyncio.sleep(0.01)
