"""Pulling from the real nats-server: what is done, what comes again, and what was skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats import pulling, streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER, Address
from ingest.roles.nats.pulling import Delivery, Pull, Puller
from tests.support.brokers import WANTED, api, embedded, fill, joined, set_ack_wait, until
from tests.support.faulty_proxy import FaultyProxy


class Reader:
    """A puller, and what it has got."""

    def __init__(self, connection: BrokerConnection, pull: Pull) -> None:
        self.connection = connection
        self.got: list[Delivery] = []
        self.skipped: list[range] = []
        self.puller = Puller(
            connection,
            consumer=WRITER,
            take=self.got.append,
            skipped=self.skipped.append,
            pull=pull,
        )
        self.puller.wanted.set()

    @property
    def bodies(self) -> list[bytes]:
        """What came in, in order."""
        return [each.data for each in self.got]


@asynccontextmanager
async def reading(
    server: EmbeddedBroker | Callable[[], Address],
    pull: Pull = Pull(),  # noqa: B008
) -> AsyncIterator[Reader]:
    """Give a reader with a connection of its own."""
    async with joined(server, "writer") as connection:
        reader = Reader(connection, pull)
        stopping = asyncio.Event()
        running = asyncio.create_task(reader.puller.run(stopping))
        try:
            yield reader
        finally:
            stopping.set()
            await running


async def floor(admin: BrokerConnection) -> int:
    """Return the place up to which all is done."""
    answer = await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}")
    place: int = answer["ack_floor"]["stream_seq"]
    return place


async def floor_is(admin: BrokerConnection, place: int) -> None:
    """Wait until all up to a place is done."""
    async with asyncio.timeout(5):
        while await floor(admin) != place:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.01)


async def test_messages_come_in_order_and_done_ones_never_again(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Also over several requests; a second reader gets only the rest."""
    bodies = [str(n).encode() for n in range(20)]
    await fill(own_nats, *bodies)
    async with reading(own_nats, Pull(messages_max=3)) as reader:
        await until(lambda: len(reader.got) == 20)
        assert reader.bodies == bodies
        assert [each.place for each in reader.got] == list(range(1, 21))
        assert {each.tries for each in reader.got} == {1}
        reader.puller.done(reader.got)
        await floor_is(admin, 20)
        await fill(own_nats, b"later")
        await until(lambda: len(reader.got) == 21)
        assert reader.skipped == []


async def test_bound_of_bytes_ends_a_request_and_not_the_reading(own_nats: EmbeddedBroker) -> None:
    """The broker ends the request when the next message does not fit; the next one goes on."""
    await fill(own_nats, *(bytes(300_000) for _ in range(9)))
    async with reading(own_nats, Pull(bytes_max=700_000)) as reader:
        await until(lambda: len(reader.got) == 9)


async def test_what_is_given_back_comes_again_at_once_and_what_is_dropped_never(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """A delivery says how often its message was delivered."""
    await fill(own_nats, b"back", b"drop", b"done")
    async with reading(own_nats) as reader:
        await until(lambda: len(reader.got) == 3)
        back, drop, done = reader.got
        reader.puller.give_back([back])
        reader.puller.drop([drop])
        reader.puller.done([done])
        await until(lambda: len(reader.got) == 4)
        assert (reader.got[3].data, reader.got[3].tries) == (b"back", 2)
        reader.puller.done([reader.got[3]])
        await floor_is(admin, 3)
        assert reader.skipped == []


async def test_delivery_comes_again_after_ack_wait_unless_somebody_works_on_it(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """`working` gives it as much time again."""
    await set_ack_wait(admin, 0.4)
    await fill(own_nats, b"forgotten", b"in work")
    async with reading(own_nats) as reader:
        await until(lambda: len(reader.got) == 2)
        for _ in range(5):
            reader.puller.working(reader.got[1:2])
            await asyncio.sleep(0.1)
        assert reader.bodies == [b"forgotten", b"in work", b"forgotten"]
        reader.puller.done(reader.got[1:])
        await floor_is(admin, 2)


async def test_nothing_is_pulled_while_nothing_is_wanted(own_nats: EmbeddedBroker) -> None:
    """The request that is open is used up, and no other one is sent."""
    async with reading(own_nats, Pull(messages_max=2)) as reader:
        await fill(own_nats, b"1")
        await until(lambda: reader.got)
        reader.puller.wanted.clear()
        await fill(own_nats, b"2", b"3", b"4")
        await until(lambda: len(reader.got) == 2)
        await asyncio.sleep(0.1)
        assert len(reader.got) == 2
        reader.puller.wanted.set()
        await until(lambda: len(reader.got) == 4)


async def test_what_is_said_while_the_broker_is_away_is_said_afterwards(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Words about deliveries are kept until there is a connection."""
    await fill(own_nats, b"1", b"2")
    direct = own_nats.published.address("writer")
    async with FaultyProxy("127.0.0.1", own_nats.published.endpoints.port) as proxy:
        by_proxy = direct._replace(servers=(f"nats://127.0.0.1:{proxy.port}",), ours=False)
        async with reading(lambda: by_proxy) as reader:
            await until(lambda: len(reader.got) == 2)
            await proxy.cut()
            await until(lambda: not reader.connection.up)
            reader.puller.done(reader.got)
            await floor_is(admin, 2)


@pytest.mark.parametrize("cut", [False, True])
async def test_old_word_is_not_said_of_a_message_of_a_new_stream(
    own_nats: EmbeddedBroker,
    admin: BrokerConnection,
    monkeypatch: pytest.MonkeyPatch,
    cut: bool,
) -> None:
    """It has the same name, and the same places: the broker would take its messages for done."""
    monkeypatch.setattr("ingest.roles.nats.pulling.AGAIN_S_MAX", 0.05)
    await fill(own_nats, b"1", b"2")
    direct = own_nats.published.address("writer")
    async with FaultyProxy("127.0.0.1", own_nats.published.endpoints.port) as proxy:
        by_proxy = direct._replace(servers=(f"nats://127.0.0.1:{proxy.port}",), ours=False)
        async with reading(lambda: by_proxy) as reader, reading(own_nats) as other:
            other.puller.wanted.clear()
            await until(lambda: len(reader.got) == 2)
            if cut:
                await proxy.cut()
                await until(lambda: not reader.connection.up)
                reader.puller.done(reader.got[:1])
            await api(admin, f"STREAM.DELETE.{STREAM}")
            await streams.apply(admin, WANTED)
            reader.puller.wanted.clear()
            other.puller.wanted.set()
            await fill(own_nats, b"3", b"4")
            await until(lambda: len({*other.bodies, *reader.bodies} - {b"1", b"2"}) == 2)
            await until(lambda: reader.connection.up and reader.puller._sure.is_set())
            reader.puller.done(each for each in reader.got if each.data in {b"1", b"2"})
            await asyncio.sleep(0.1)
            assert await floor(admin) == 0
            for each in (other, reader):
                each.puller.done(each.got)
            await floor_is(admin, 2)


async def test_damaged_message_is_reported_as_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1: nats-server skips it without a word: its numbers show it, whichever message it is."""
    monkeypatch.setattr(pulling, "EXPIRES_S", 0.3)
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    folder = tmp_path / "broker"
    async with embedded(folder) as server:
        await fill(server, *(b"payload-number-%d-" % n + b"x" * 200 for n in range(1, 11)))
    flipped = 0
    for path in (folder / "store").rglob("*.blk"):
        data = bytearray(path.read_bytes())
        for number in (1, 5, 6, 10):
            at = data.find(b"payload-number-%d-" % number)
            data[at + 30] ^= 1
            flipped += at >= 0
        path.write_bytes(data)
    assert flipped == 4
    async with embedded(folder, wanted=None) as server, reading(server) as reader:
        await until(lambda: len(reader.skipped) == 3)
        assert [each.place for each in reader.got] == [2, 3, 4, 7, 8, 9]
        assert reader.skipped == [range(1, 2), range(5, 7), range(10, 11)]
        await fill(server, b"after")
        await until(lambda: len(reader.got) == 7)
        await asyncio.sleep(0.4)
        assert len(reader.skipped) == 3, "each once"


async def test_purge_by_hand_is_reported_as_skipped(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Messages that somebody removed before they were delivered."""
    async with reading(own_nats, Pull(messages_max=1)) as reader:
        await fill(own_nats, b"0")
        await until(lambda: reader.got)
        reader.puller.wanted.clear()
        await fill(own_nats, b"1", b"2", b"3", b"4")
        await asyncio.sleep(0.1)
        count = len(reader.got)  # a request for one more may have been open
        assert count <= 2
        await api(admin, f"STREAM.PURGE.{STREAM}", {"seq": 5})
        reader.puller.wanted.set()
        await until(lambda: reader.bodies[-1] == b"4")
        assert reader.skipped == [range(count + 1, 5)]
