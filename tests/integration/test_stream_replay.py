"""The automatic replay of a stream's dead letters where it differs from that of files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from ingest.model.errors import BrokerAway
from ingest.model.reading import EXHAUSTED
from ingest.roles import letters as replay
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import DEAD_LETTER_SUBJECT, DEAD_LETTERS, REPLAY
from tests.support.brokers import api, joined, until
from tests.support.letters import drained
from tests.support.replay_rig import InStream, rows, stream_with_short_waits
from tests.support.stream_letters import count


@pytest.fixture
async def place(nats: EmbeddedBroker, readings_url: str) -> AsyncIterator[InStream]:
    """Give dead letters in a stream."""
    async with stream_with_short_waits(nats, readings_url) as made:
        yield made


async def until_left(place: InStream, number: int) -> None:
    """Wait until the stream has so many messages."""
    async with asyncio.timeout(8):
        while await count(place.admin) != number:  # noqa: ASYNC110  another process deletes them
            await asyncio.sleep(0.01)


async def until_consumer(admin: BrokerConnection, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until something holds of the consumer of the replay."""
    async with asyncio.timeout(5):
        while not holds(await api(admin, f"CONSUMER.INFO.{DEAD_LETTERS}.{REPLAY}")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_one_writer_replays_and_another_takes_over(
    place: InStream, readings_connection: asyncpg.Connection
) -> None:
    """Of two replays one works; if it has died, the other one goes on."""
    await place.write(drained(400))
    async with place.running() as one:
        await until(lambda: one.ledger.replayed)
        async with place.running() as other:
            await until_left(place, 0)
            assert (one.ledger.replayed, other.ledger.replayed) == (400, 0)
            one.stopping.set()
            await place.write(drained(10))
            await until_left(place, 0)
            assert other.ledger.replayed == 10
    assert await rows(readings_connection) == 410


async def test_replay_killed_between_commit_and_delete_doubles_nothing(
    place: InStream, readings_connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one sends the same letters again, and the key absorbs them."""
    await place.write(drained(150))
    with monkeypatch.context() as patched:
        committed = asyncio.Event()

        async def die(*_: object) -> None:
            if committed.is_set():
                raise BrokerAway("killed")
            committed.set()
            await asyncio.Event().wait()

        patched.setattr(StreamMessages, "delete", die)
        async with joined(place.nats, "writer") as connection:
            half = place.half(connection)
            writing = asyncio.create_task(half.writer.run())
            killed = asyncio.create_task(half.replayer.run(half.stopping))
            await committed.wait()
            # As in a kill: nothing is deleted, and nothing is said to the broker any more.
            connection.send = lambda *_: False  # type: ignore[method-assign]
            half.stopping.set()
            killed.cancel()
            await asyncio.wait([killed])
            half.buffer.shut_inlet()
            half.halted.set()
            await writing
    assert await rows(readings_connection) == 100
    assert await count(place.admin) == 150
    async with place.running() as half:
        await until_left(place, 0)
        assert (half.ledger.committed, half.ledger.duplicate) == (50, 100)
    assert await rows(readings_connection) == 150


async def test_delete_that_fails_is_made_up_for(
    place: InStream, readings_connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker goes away between the commit and the delete."""
    await place.write(drained(50))
    delete = StreamMessages.delete
    failures = iter([BrokerAway("gone"), BrokerAway("gone")])

    async def sometimes(self: StreamMessages, places: list[int]) -> None:
        if error := next(failures, None):
            raise error
        await delete(self, places)

    monkeypatch.setattr(StreamMessages, "delete", sometimes)
    async with place.running():
        await until_left(place, 0)
    assert await rows(readings_connection) == 50


async def test_row_without_a_partition_stays_until_there_is_one(
    place: InStream, readings_connection: asyncpg.Connection
) -> None:
    """The replay finds it refused again, and neither deletes its letter nor writes a second one."""
    await readings_connection.execute(
        """alter table readings rename to plain;
        create table readings (like plain, primary key (ts, device_id, metric, value))
        partition by range (ts)"""
    )
    await place.write(drained(3, reason=EXHAUSTED))
    async with place.running() as half:
        await until(lambda: half.ledger.dead_lettered[EXHAUSTED] >= 3)
        assert await count(place.admin) == 3
        await readings_connection.execute(
            "create table whole partition of readings for values from (minvalue) to (maxvalue)"
        )
        await until_left(place, 0)
    assert await rows(readings_connection) == 3


async def test_message_that_is_no_letter_is_passed_over(
    place: InStream, readings_connection: asyncpg.Connection
) -> None:
    """Also if the broker gives it as the first one. Nothing is left to do for it then."""
    async with joined(place.nats, "writer") as writer:
        await writer.request(f"{DEAD_LETTER_SUBJECT}drained", b"no letter", 5)
    await place.write(drained(20))
    async with place.running():
        await until_left(place, 1)
        await until_consumer(
            place.admin, lambda info: info["num_pending"] + info["num_ack_pending"] == 0
        )
    assert await rows(readings_connection) == 20


async def test_writer_whose_database_is_away_leaves_the_replay_to_others(
    place: InStream, readings_connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer whose database is away does not even ask for them."""
    monkeypatch.setattr(replay, "PULL_S", 0.1)
    monkeypatch.setattr(replay, "LATE_S", 0.1)
    async with place.running() as half:
        half.up = False
        await asyncio.sleep(0.3)  # it may have asked just before
        await place.write(drained(60))
        await asyncio.sleep(0.2)
        assert half.ledger.replayed == 0
        await until_consumer(place.admin, lambda info: info["delivered"]["consumer_seq"] == 0)
        half.up = True
        await until_left(place, 0)
    assert await rows(readings_connection) == 60
