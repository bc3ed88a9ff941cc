"""A gateway and two writers on three servers, and what must hold after one of these has failed."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from ingest.model.errors import BrokerAway
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, Address
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.pulling import Pull
from ingest.roles.nats.watch import StreamWatch
from tests.support.brokers import until
from tests.support.clusters import WANTED_3, Cluster, Member
from tests.support.stream_writers import StreamWriter, new_mark, purged, writing


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
