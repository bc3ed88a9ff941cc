"""Both halves of the buffer on a stream, with the real nats-server between them."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from ingest.model.block import row_offsets
from ingest.model.ledger import DeadLetterStats, Gauges, Ledger
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.group_queue import Commits
from ingest.roles.inlet import StreamInlet
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, SUBJECT, WRITER, Address
from ingest.roles.nats.publishing import Publisher
from ingest.roles.nats.pulling import Delivery, Puller
from ingest.roles.outlet import StreamOutlet
from ingest.system.clock import monotonic_s
from tests.support.brokers import api, embedded, hit, joined, set_ack_wait, until
from tests.support.faulty_proxy import FaultyProxy
from tests.support.journals import make_block
from tests.support.streams import Poster

MIB = 1 << 20
Where = EmbeddedBroker | Callable[[], Address]


def rows_in(tuples: bytes) -> list[bytes]:
    """Return the single rows."""
    offsets = row_offsets(tuples)
    return [tuples[begin:end] for begin, end in pairwise(offsets)]


def count(ledger: Ledger, half: StreamInlet | StreamOutlet) -> None:
    """Let a ledger read the half that it belongs to."""
    ledger.gauges = Gauges(
        buffer=half.stats,
        dead_letters=DeadLetterStats,
        database_up=lambda: True,
        hold_reason=lambda: None,
    )


class Gateway:
    """An inlet with the real publisher, and the real keeper before it."""

    def __init__(self, connection: BrokerConnection, life: str, wait_s_max: float) -> None:
        self.ledger = Ledger()
        self.publisher = Publisher(connection, subject=SUBJECT, stream=STREAM, try_s_max=0.5)
        self.inlet = StreamInlet(
            self.publisher,
            self.ledger,
            life=life,
            rows_max=100_000,
            bytes_max=16 * MIB,
            put_wait_s_max=1.0,
            group_rows_max=10_000,
            group_bytes_max=256 * 1024,
            groups_in_flight=2,
            wait_s_max=wait_s_max,
            commits=Commits(connection, outcome_s_max=5),
        )
        count(self.ledger, self.inlet)
        self.poster = Poster(self.inlet, self.ledger)

    async def traffic(self, posts: int, *, pause_s: float = 0.002) -> None:
        """Post in all ways."""
        for number in range(posts):
            ack = "buffered" if number % 3 == 0 else "durable"
            self.poster.post(make_block(1 + number % 4), ack, invalid=number % 7 == 0)
            await asyncio.sleep(pause_s)

    def rows(self, *statuses: int) -> set[bytes]:
        """Return the rows of posts with these answers."""
        found = [post.rows for post in self.poster.posts if post.status in statuses]
        return {row for tuples in found for row in rows_in(tuples)}

    def refused(self) -> set[bytes]:
        """Return the rows of posts of which nothing is kept."""
        posts = self.poster.posts
        found = [post.rows for post in posts if post.code in {"broker_away", "buffer_full"}]
        return {row for tuples in found for row in rows_in(tuples)}


class Writer:
    """An outlet with the real puller, and a table of rows, in which each is once."""

    def __init__(self, connection: BrokerConnection, table: Counter[bytes]) -> None:
        self.ledger = Ledger()
        self.foreign: list[Delivery] = []
        self.deliveries = 0
        self.frozen = False
        self.outlet = StreamOutlet(
            self.ledger,
            lambda delivery, _: self.foreign.append(delivery),
            lambda _, ack: None,
            rows_max=20_000,
            bytes_max=16 * MIB,
            put_wait_s_max=1.0,
        )
        count(self.ledger, self.outlet)
        self.puller = Puller(connection, consumer=WRITER, take=self._take, skipped=lambda _: None)
        self.outlet.pull_from(self.puller)
        self._table = table

    def _take(self, delivery: Delivery) -> None:
        self.deliveries += 1
        self.outlet.deliver(delivery)

    async def write(self, stopping: asyncio.Event) -> None:
        """Write until it is to stop."""
        while not stopping.is_set():
            await asyncio.sleep(0.002)
            if self.frozen or not (blocks := self.outlet.take(500)):
                continue
            await asyncio.sleep(0.002)
            for row in [row for block in blocks for row in rows_in(block.tuples)]:
                self.ledger.committed += not self._table[row]
                self.ledger.duplicate += bool(self._table[row])
                self._table[row] += 1
            self.outlet.settle(blocks)


@asynccontextmanager
async def gateway(
    where: Where, life: str = "life", wait_s_max: float = 8
) -> AsyncIterator[Gateway]:
    """Run a gateway; at the end its balance is 0."""
    async with joined(where, "gateway") as connection:
        running = Gateway(connection, life, wait_s_max)
        yield running
        await running.poster.finish()
        await running.inlet.close()
        assert running.ledger.imbalance == 0
        assert running.inlet.memory.rows == running.inlet.memory.size_bytes == 0


@asynccontextmanager
async def writer(where: Where, table: Counter[bytes]) -> AsyncIterator[Writer]:
    """Run a writer; at the end its balance is 0."""
    async with joined(where, "writer") as connection:
        running = Writer(connection, table)
        stopping = asyncio.Event()
        tasks = [
            asyncio.create_task(each)
            for each in (
                running.puller.run(stopping),
                running.write(stopping),
                running.outlet.run(stopping, 0.3),
            )
        ]
        try:
            yield running
        finally:
            stopping.set()
            await asyncio.gather(*tasks)
        assert running.ledger.imbalance == 0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """Give a broker with the stream, in which a message comes again after a second."""
    async with embedded(tmp_path / "broker") as running:
        async with joined(running, "admin") as admin:
            await set_ack_wait(admin, 1)
        yield running


async def all_done(server: EmbeddedBroker) -> None:
    """Wait until the consumer has nothing left."""
    async with joined(server, "admin") as admin:
        async with asyncio.timeout(15):
            while True:
                info = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
                if not info["num_pending"] and not info["num_ack_pending"]:
                    return
                await asyncio.sleep(0.02)


async def test_posts_of_two_gateways_reach_two_writers_once(server: EmbeddedBroker) -> None:
    """All ways in. Nothing is redelivered, so nothing comes twice; both balances hold."""
    table: Counter[bytes] = Counter()
    async with (
        gateway(server, "one") as one,
        gateway(server, "two") as two,
        writer(server, table) as first,
        writer(server, table) as second,
    ):
        await asyncio.gather(one.traffic(150), two.traffic(150))
        for each in (one, two):
            await each.poster.finish()
            await each.inlet.finish()
            assert {post.status for post in each.poster.posts} == {202}
        await all_done(server)
        rows = one.rows(202) | two.rows(202)
        assert set(table) == rows
        assert set(table.values()) == {1}
        published = one.ledger.published + two.ledger.published
        assert published == first.ledger.delivered + second.ledger.delivered == len(rows)
        async with joined(server, "admin") as admin:
            sizes = (await api(admin, f"STREAM.INFO.{STREAM}"))["state"]
            assert sizes["messages"] < 400  # posts share messages
        came = first.puller.delivered_bytes + second.puller.delivered_bytes
        assert 0.4 * sizes["bytes"] < came < sizes["bytes"]  # the stream counts some overhead


async def test_rest_of_a_writer_goes_to_another_one_at_once(server: EmbeddedBroker) -> None:
    """Although the request of the first one is still open: it must not come back by that."""
    table: Counter[bytes] = Counter()
    async with writer(server, table) as leaves:
        leaves.frozen = True
        async with gateway(server) as sends:
            await sends.traffic(60, pause_s=0.001)
            await sends.inlet.finish()
        assert not table
        await until(lambda: leaves.outlet.rows_waiting == len(sends.rows(202)))
        came = leaves.deliveries
        leaves.outlet.shut_inlet()
        await leaves.outlet.keep_rest()
        assert leaves.ledger.returned == leaves.ledger.delivered > 0
        await asyncio.sleep(0.2)  # its connection is still there
        assert leaves.deliveries == came
        assert leaves.outlet.stats().rows == 0
    began_s = monotonic_s()
    async with writer(server, table):
        await until(lambda: len(table) == len(sends.rows(202)))
    assert monotonic_s() - began_s < 2  # and not ack_wait


async def test_killed_broker_loses_nothing(server: EmbeddedBroker) -> None:
    """Twice, under traffic. What was said to be not kept is not in the table."""
    table: Counter[bytes] = Counter()
    async with gateway(server) as sends, writer(server, table) as writes:
        traffic = asyncio.create_task(sends.traffic(600))
        for rows in (200, 700):
            await until(lambda rows=rows: sends.ledger.accepted > rows)  # type: ignore[misc]
            await until(lambda: server.pid is not None)
            hit(server.pid, signal.SIGKILL)
        await traffic
        await sends.poster.finish()
        await sends.inlet.finish()
        assert {post.status for post in sends.poster.posts} == {202}
        await until(lambda: set(table) >= sends.rows(202), 15)
        await until(lambda: not writes.outlet.stats().rows)
        assert set(table) == sends.rows(202)
        assert sends.ledger.published == len(table)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_connections_cut_anywhere_lose_nothing(server: EmbeddedBroker, seed: int) -> None:
    """Of gateway and writer, at random moments, some answers and acknowledgements lost."""
    chance = random.Random(seed)
    table: Counter[bytes] = Counter()
    port = server.published.endpoints.port
    async with FaultyProxy("127.0.0.1", port) as before, FaultyProxy("127.0.0.1", port) as behind:

        def by(proxy: FaultyProxy, role: str) -> Callable[[], Address]:
            direct = server.published.address(role)
            server_ = f"nats://127.0.0.1:{proxy.port}"
            return lambda: Address((server_,), direct.user, direct.password)

        async with (
            gateway(by(before, "gateway")) as sends,
            writer(by(behind, "writer"), table) as writes,
        ):
            traffic = asyncio.create_task(sends.traffic(700))
            while not traffic.done():
                await asyncio.sleep(chance.uniform(0.01, 0.15))
                proxy = chance.choice((before, behind))
                if chance.random() < 0.5:
                    proxy.stall(chance.choice(("to_server", "to_client")))
                    await asyncio.sleep(chance.uniform(0, 0.05))
                await proxy.cut()
                proxy.resume()
            await traffic
            await sends.poster.finish()
            await sends.inlet.finish()
            kept = sends.rows(202)
            await until(lambda: set(table) >= kept, 15)
            await until(lambda: not writes.outlet.stats().rows)
            assert before.connections_total > 3
            assert behind.connections_total > 3
            assert not set(table) & sends.refused()
            assert set(table) == kept
            assert {post.status for post in sends.poster.posts} == {202}
            await all_done(server)
            assert writes.ledger.committed == len(table)
