"""The purge, with the real nats-server: what is done goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.roles.nats.purge import StreamPurge
from tests.support.brokers import api, joined, put, until
from tests.support.stream_writers import StreamWriter, first_place, new_mark, purged, writing

FAR = 10**9


async def fill(server: EmbeddedBroker, count: int, size_bytes: int = 10) -> None:
    """Put messages into the stream."""
    async with joined(server, "gateway") as gateway:
        await put(gateway, *(bytes(size_bytes) for _ in range(count)))


async def make_consumer(admin: BrokerConnection, name: str) -> None:
    """Make a consumer like that of a forward."""
    config = {"durable_name": name, "ack_policy": "explicit", "deliver_policy": "all"}
    body = {"stream_name": STREAM, "config": config, "action": "create"}
    assert "error" not in await api(admin, f"CONSUMER.CREATE.{STREAM}.{name}", body)


def purging(
    writer: StreamWriter, *, forwards: tuple[str, ...] = (), keep_s: float = 0, to: int = FAR
) -> StreamPurge:
    """Return a purge with the connection of a writer."""
    return StreamPurge(
        writer.connection,
        forwards=forwards,
        keep_s=keep_s,
        checked_to=lambda _made: to,
        delivered_bytes=lambda: writer.puller.delivered_bytes,
        mark=new_mark(),
        forward_lag_bytes_max=FAR,
    )


@asynccontextmanager
async def after(server: EmbeddedBroker, count: int) -> AsyncIterator[StreamWriter]:
    """Give a writer that has got so many messages, and has done none of them."""
    await fill(server, count)
    async with writing(server, acknowledges=False, checks=False) as writer:
        await until(lambda: len(writer.got) == count)
        yield writer


async def test_only_what_is_done_is_removed(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Up to the first message that is not; nothing of an empty stream, and nothing twice."""
    async with after(own_nats, 10) as writer:
        it = purging(writer)
        assert await it.purge()
        assert await first_place(admin) == 1
        writer.puller.done(writer.got[:4] + writer.got[6:])
        await purged(admin, 4, it)
        assert it.faults == ()
        writer.puller.done(writer.got[4:6])
        await purged(admin, 10, it)
        await it.purge()
        assert await first_place(admin) == 11


async def test_nothing_is_removed_that_the_check_has_not_seen(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Else a skipped message would be gone before anybody notices."""
    async with after(own_nats, 6) as writer:
        writer.puller.done(writer.got)
        it = purging(writer, to=3)
        await purged(admin, 1, it)
        await it.purge()
        assert await first_place(admin) == 4


async def test_named_consumer_that_is_behind_or_missing_keeps_messages(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """If it is missing, that is a fault: it may come back, or its name is wrong."""
    await make_consumer(admin, "one")
    async with after(own_nats, 6) as writer:
        writer.puller.done(writer.got)
        behind = purging(writer, forwards=("one",))
        await asyncio.sleep(0.1)
        await behind.purge()
        assert (await first_place(admin), behind.faults) == (1, ())
        missing = purging(writer, forwards=("one", "two"))
        await missing.purge()
        (fault,) = missing.faults
        assert "two" in str(fault)
        assert "nothing is removed" in str(fault)
        assert await first_place(admin) == 1
        await api(admin, f"CONSUMER.DELETE.{STREAM}.one")
        await behind.purge()
        assert "one" in str(behind.faults)
        assert await first_place(admin) == 1
        await purging(writer).purge()
        assert await first_place(admin) == 7


async def test_consumer_that_was_made_anew_has_done_nothing(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Also if the one before it had done all."""
    async with after(own_nats, 6) as writer:
        writer.puller.wanted.clear()
        writer.puller.done(writer.got)
        config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["config"]
        await asyncio.sleep(0.1)
        await api(admin, f"CONSUMER.DELETE.{STREAM}.{WRITER}")
        it = purging(writer)
        await it.purge()
        assert "consumer writer" in str(it.faults)
        body = {"stream_name": STREAM, "config": config, "action": "create"}
        assert "error" not in await api(admin, f"CONSUMER.CREATE.{STREAM}.{WRITER}", body)
        await it.purge()
        assert (await first_place(admin), it.faults) == (1, ())


async def test_what_is_done_is_kept_for_a_while(
    own_nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """With `keep_s`, so that a restored database can be written again."""
    async with after(own_nats, 6) as writer:
        writer.puller.done(writer.got)
        it = purging(writer, keep_s=0.4)
        await asyncio.sleep(0.1)
        await it.purge()
        await it.purge()
        assert await first_place(admin) == 1
        await asyncio.sleep(0.45)
        await it.purge()
        assert await first_place(admin) == 7


async def test_purge_ends_at_once_and_says_if_the_broker_is_away(own_nats: EmbeddedBroker) -> None:
    """The next one may be more lucky."""
    async with writing(own_nats, checks=False, purges=True) as writer:
        await own_nats.stop()
        await until(lambda: not writer.connection.up)
        assert not await writer.purge.purge()
