"""Writers of a stream without a database, also in the traffic over a cluster of three servers."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from ingest.model.errors import BrokerAway
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.audit import Audit
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER, Address
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.pulling import Delivery, Pull, Puller
from ingest.roles.nats.purge import StreamPurge
from ingest.roles.nats.watch import StreamWatch
from ingest.system.state_folder import MarkFile
from tests.support.brokers import WANTED_3, Cluster, Member, api, is_up, until

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


class Traffic:
    """A gateway that publishes with ids and watches, and two writers that check and purge."""

    def __init__(self, servers: Cluster, first: Member) -> None:
        # It begins with this server, and may go on with each.
        addresses = iter([servers.address("gateway", first.name)])
        self._address = servers.address("gateway")
        self.connection = BrokerConnection(lambda: next(addresses, self._address), "gateway")
        self.publisher = Publisher(self.connection, subject=SUBJECT, stream=STREAM, wait_s_max=25)
        self.watch = StreamWatch(
            self.connection,
            WANTED_3,
            monitors=lambda: servers.monitors,
            unsafe=False,
            published=lambda: self.publisher.published,
            mark=new_mark(),
        )
        self.writers: list[StreamWriter] = []
        self.acknowledged: list[bytes] = []
        self._numbers = itertools.count()

    async def publish(self, stopping: asyncio.Event) -> None:
        """Publish one message after the other; each must succeed."""
        while not stopping.is_set():
            body = b"message %d" % next(self._numbers)
            await self.publisher.publish(body.decode(), body.ljust(3_000, b"."))
            self.acknowledged.append(body)
            await asyncio.sleep(0.02)

    @property
    def places(self) -> dict[int, bytes]:
        """What the writers have got, by place."""
        got = (each for writer in self.writers for each in writer.got)
        return {each.place: each.data.rstrip(b".") for each in got}


async def survives(
    servers: Cluster,
    admin: BrokerConnection,
    first: Member,
    suffer: Callable[[], Awaitable[None]],
) -> None:
    """Let servers suffer under traffic, whose gateway is connected to `first`; check the result.

    Each acknowledged message is delivered, and none is stored twice. Nothing is alarmed.
    """
    traffic = Traffic(servers, first)
    stopping, publishing = asyncio.Event(), asyncio.Event()
    where: Address = servers.address("writer")
    async with AsyncExitStack() as stack:
        parts = [traffic.connection.run(stopping), traffic.watch.run(stopping)]
        parts += [traffic.publish(publishing) for _ in range(8)]
        running = [asyncio.create_task(each) for each in parts]
        for _ in range(2):
            writer = await stack.enter_async_context(writing(lambda: where, Pull(), purges=True))
            traffic.writers.append(writer)
        await until(lambda: len(traffic.acknowledged) > 200 and traffic.watch.checked, 20)
        await suffer()
        await asyncio.gather(*(each.is_well(40) for each in servers.members))
        await servers.leader(admin)
        before = len(traffic.acknowledged)
        await until(lambda: len(traffic.acknowledged) > before + 200, 40)
        publishing.set()
        await asyncio.gather(*running[2:])
        await until(lambda: set(traffic.acknowledged) <= set(traffic.places.values()), 60)
        stored = Counter(traffic.places.values())
        assert [body for body, times in stored.items() if times > 1] == []
        last = traffic.publisher.published.to
        async with asyncio.timeout(60):
            while True:
                try:
                    await purged(admin, last)
                except (TimeoutError, BrokerAway):
                    continue
                break
        assert [each.audit.skipped for each in traffic.writers] == [0, 0]
        assert (traffic.watch.removed, traffic.watch.faults) == (0, ())
        stopping.set()
        await asyncio.gather(*running)
