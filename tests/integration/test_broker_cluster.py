"""Three nats-servers with three copies of the stream: what one of them suffers, nobody loses."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ingest.broker import given_check, purge
from ingest.broker.connection import BrokerConnection
from ingest.broker.publishing import Publisher
from ingest.broker.pulling import Pull
from ingest.broker.roles import STREAM, SUBJECT, WRITER
from ingest.broker.session import Address
from ingest.broker.watch import StreamWatch
from ingest.model.errors import BrokerAway
from tests.support.brokers import api, joined, put, until
from tests.support.clusters import WANTED_3, Cluster, Member, cluster
from tests.support.stream_writers import StreamWriter, purged, writing

pytestmark = pytest.mark.slow

BODIES = [b"payload-number-%03d-" % n + b"x" * 200 for n in range(1, 11)]
FROZEN_S = 7.0


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Give three servers with a stream."""
    async with cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(servers: Cluster) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin."""
    async with joined(lambda: servers.address("admin"), "admin") as connection:
        yield connection


async def lead(admin: BrokerConnection, what: str, name: str) -> None:
    """Let a server lead the stream, or its consumer."""
    kind = "CONSUMER" if what.endswith(WRITER) else "STREAM"
    async with asyncio.timeout(30):
        while (await api(admin, f"{kind}.INFO.{what}"))["cluster"].get("leader") != name:
            wish = {"placement": {"preferred": name}}
            await api(admin, f"{kind}.LEADER.STEPDOWN.{what}", wish)
            await asyncio.sleep(0.3)


async def damage(servers: Cluster, admin: BrokerConnection, number: int, *bad: Member) -> None:
    """Flip a bit of a message on the disks of some servers."""
    for each in bad:
        await each.end(signal.SIGTERM)
        flipped = 0
        for path in (each.store / "jetstream").rglob("*.blk"):
            data = bytearray(path.read_bytes())
            at = data.find(b"payload-number-%03d-" % number)
            if at >= 0:
                data[at + 30] ^= 1
                path.write_bytes(data)
                flipped += 1
        assert flipped
        await each.start()
        await each.is_well()
        await servers.leader(admin)


@pytest.fixture
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check look more often."""
    monkeypatch.setattr(given_check, "KNOWN_S", 0.5)
    monkeypatch.setattr(given_check, "EVERY_S", 0.1)


@pytest.mark.usefixtures("quick_check")
async def test_damaged_copy_is_read_from_another_server(
    servers: Cluster, admin: BrokerConnection
) -> None:
    """T1: the server with the damage leads, and skips the message. It is written all the same."""
    async with joined(lambda: servers.address("gateway"), "gateway") as gateway:
        await put(gateway, *BODIES)
    bad = await servers.leader(admin)
    await damage(servers, admin, 5, bad)
    await lead(admin, STREAM, bad.name)
    await lead(admin, f"{STREAM}.{WRITER}", bad.name)
    async with writing(lambda: servers.address("writer"), Pull()) as one:
        await until(lambda: len(one.got) == 9)
        assert BODIES[4] not in one.bodies, "the control: it was skipped"
        await until(lambda: len(one.got) == 10, 20)
        assert (one.got[9].data, one.got[9].place, one.got[9].tries) == (BODIES[4], 5, 2)
        await until(lambda: one.check.checked_to == 10)
        assert (one.check.skipped, one.check.read_again) == (0, 1)


@pytest.mark.usefixtures("quick_check")
async def test_message_that_is_damaged_on_all_servers_is_counted(
    servers: Cluster, admin: BrokerConnection
) -> None:
    """It is lost, and the purge goes past it then."""
    async with joined(lambda: servers.address("gateway"), "gateway") as gateway:
        await put(gateway, *BODIES)
    await damage(servers, admin, 5, *servers.members)
    async with writing(lambda: servers.address("writer"), Pull(), purges=True) as one:
        await until(lambda: one.check.skipped == 1, 20)
        assert len(one.got) == 9
        await purged(admin, 10, one.purge)


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
            published_to=lambda: self.publisher.published_to,
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


async def _after(servers: Cluster, admin: BrokerConnection, hit: Member, number: int) -> None:
    """Let a server suffer, and recover."""
    if number == signal.SIGSTOP:
        hit.send(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        hit.send(signal.SIGCONT)
    else:
        await hit.end(signal.Signals(number))
        await asyncio.sleep(1)
        await hit.start()
    await hit.is_well(40)
    await servers.leader(admin)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["leader", "connected", "other"])
async def test_server_that_fails_costs_nothing(
    servers: Cluster,
    admin: BrokerConnection,
    victim: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each acknowledged message is delivered, and none is stored twice. Nothing is alarmed."""
    monkeypatch.setattr(purge, "EVERY_S", 1.0)
    leader = await servers.leader(admin)
    followers = [each for each in servers.members if each is not leader]
    hit = {"leader": leader, "connected": followers[0], "other": followers[1]}[victim]
    traffic = Traffic(servers, hit if victim == "connected" else followers[0])
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
        await _after(servers, admin, hit, number)
        before = len(traffic.acknowledged)
        await until(lambda: len(traffic.acknowledged) > before + 200, 40)
        publishing.set()
        await asyncio.gather(*running[2:])
        await until(lambda: set(traffic.acknowledged) <= set(traffic.places.values()), 60)
        stored = Counter(traffic.places.values())
        assert [body for body, times in stored.items() if times > 1] == []
        last = traffic.publisher.published_to
        async with asyncio.timeout(60):
            while True:
                try:
                    await purged(admin, last)
                except (TimeoutError, BrokerAway):
                    continue
                break
        assert [each.check.skipped for each in traffic.writers] == [0, 0]
        assert (traffic.watch.removed, traffic.watch.faults) == (0, ())
        stopping.set()
        await asyncio.gather(*running)
