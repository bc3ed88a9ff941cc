"""Dead letters in the stream of a real nats-server: kept if it says so, read, deleted, replayed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import Selection, Tally, newest
from ingest.model.errors import (
    BrokerAway,
    BrokerRefused,
    DeadLettersBroken,
    DeadLettersFull,
)
from ingest.model.reading import EXHAUSTED, REFUSED
from ingest.roles import letters as replay
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.letters import StreamBackend
from ingest.roles.nats import streams
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import DEAD_LETTER_SUBJECT, DEAD_LETTERS, REPLAY, Address
from tests.support.brokers import LETTERS, api, embedded, hit, is_up, joined, until
from tests.support.faulty_proxy import FaultyProxy
from tests.support.letters import drained, invalid
from tests.support.replay_rig import (
    InStream,
    change,
    count,
    kept,
    live,
    rows,
    store_of,
    stream_queue,
    stream_with_short_waits,
)

MIB = 1024**2


@pytest.fixture
async def admin(nats: EmbeddedBroker) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin."""
    async with joined(nats, "admin") as connection:
        yield connection


@pytest.fixture
async def writer(nats: EmbeddedBroker) -> AsyncIterator[BrokerConnection]:
    """Give a connection of a writer."""
    async with joined(nats, "writer") as connection:
        yield connection


def queue_of(
    connection: BrokerConnection, bytes_max: int = 64 * MIB, *, wait_s_max: float = 30
) -> DeadLetterQueue:
    """Return dead letters that do not give up if the disk of the broker is slow for a while."""
    return stream_queue(connection, bytes_max, try_s_max=wait_s_max / 2, wait_s_max=wait_s_max)


def backend_of(queue: DeadLetterQueue) -> StreamBackend:
    """Return what keeps its letters."""
    assert isinstance(queue.backend, StreamBackend)
    return queue.backend


async def test_killed_broker_costs_no_letter_and_lists_none_twice(tmp_path: Path) -> None:
    """An append waits for the broker that comes back; each letter is listed once."""
    async with embedded(tmp_path, wanted=LETTERS) as own, joined(own, "writer") as writer:
        queue = stream_queue(writer, 64 * MIB)
        groups = [drained(200) for _ in range(5)]
        appends = [asyncio.create_task(queue.append(each)) for each in groups]
        for reached in (150, 600):
            await until(lambda reached=reached: len(backend_of(queue)._places) > reached)  # type: ignore[misc]
            await until(lambda: own.pid is not None)
            hit(own.pid, signal.SIGKILL)
        await asyncio.gather(*appends)
        async with joined(own, "admin") as admin:
            found = await kept(admin)
        assert sorted(found) == sorted(letter for group in groups for letter in group)
        await queue.close()


async def test_broker_that_is_away_or_frozen_is_told_in_time(
    nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """Nothing is promised then. The same letters can be appended later."""
    async with FaultyProxy("127.0.0.1", nats.published.endpoints.port) as proxy:
        direct = nats.published.address("gateway")
        by_proxy = Address((f"nats://127.0.0.1:{proxy.port}",), direct.user, direct.password)
        async with joined(lambda: by_proxy, "gateway") as gateway:
            queue = queue_of(gateway, wait_s_max=0.6)
            letters = drained(3)
            await queue.append(drained(1))
            proxy.stall()
            with pytest.raises(DeadLettersBroken, match="stored or not"):
                await queue.append(letters)
            await proxy.close()
            await is_up(gateway, False)
            with pytest.raises(DeadLettersBroken, match="cannot take"):
                await queue.append(letters)
            assert queue.stats().live <= 1
    async with joined(nats, "gateway") as gateway:
        await queue_of(gateway).append(letters)
    assert len(await kept(admin)) == 4


async def test_letter_of_a_stream_that_was_made_anew_is_not_live(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """Other letters have the old places."""
    queue, letters = queue_of(writer), drained(5)
    await queue.append(letters)
    await api(admin, f"STREAM.DELETE.{DEAD_LETTERS}")
    await streams.apply(admin, LETTERS)
    others = drained(5)
    await queue_of(writer).append(others)
    await queue.append(letters)
    assert sorted(await kept(admin)) == sorted([*letters, *others])


async def test_live_letter_is_not_appended_again_long_after(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """The broker has forgotten its message id, and we have not."""
    await change(admin, duplicate_window=100_000_000)
    queue, other = queue_of(writer), queue_of(writer)
    letters = drained(300)
    await queue.append(letters)
    await asyncio.sleep(0.3)
    await queue.append(letters)
    await queue.append(letters[:1] * 2)
    assert await count(admin) == 300
    async with asyncio.timeout(10):
        while await count(admin) < 302:  # until the broker has forgotten the message ids
            await asyncio.sleep(0.3)
            backend_of(other)._places.clear()
            await other.append(letters[:2])  # as another process would
    assert await count(admin) == 302
    assert len(await kept(admin)) == 300
    assert len((await newest(store_of(admin), Selection(), 1_000)).letters) == 300


async def test_letters_in_replay_are_not_appended(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """They are live, and stay so if they fail again."""
    queue = queue_of(writer)
    letters = drained(2, reason=EXHAUSTED)
    await queue.append(letters)
    (one, _) = await live(store_of(admin))
    backend_of(queue).replaying.add((one.id + EXHAUSTED[:3]).encode())
    await change(admin, duplicate_window=100_000_000)
    async with asyncio.timeout(30):
        while await count(admin) < 3:  # until the broker has forgotten the message ids
            await asyncio.sleep(0.3)
            backend_of(queue)._places.clear()
            await queue.append(letters)
    assert await count(admin) == 3


async def test_full_stream_refuses_and_says_so(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """The bound is the broker's; what is there stays."""
    await change(admin, max_bytes=20_000)
    queue = queue_of(writer)
    before = drained(10)
    await queue.append(before)
    with pytest.raises(DeadLettersFull, match="full"):
        await queue.append(drained(1_000, reason=REFUSED))
    assert set(before) <= set(await kept(admin))
    assert (await store_of(admin).extent()).size_bytes <= 20_000


async def test_letter_larger_than_a_message_finds_no_room(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """Nothing of its post is kept, and the connection stays."""
    with pytest.raises(DeadLettersFull, match="max_payload"):
        await queue_of(writer).append([*drained(1), invalid(bytes(9 * MIB))])
    assert await count(admin) == 0
    assert writer.up
    await queue_of(writer).append([invalid(b"x" * 7 * MIB) for _ in range(1)])
    assert await count(admin) == 1


async def test_message_that_is_no_letter_is_counted_and_skipped(
    writer: BrokerConnection, admin: BrokerConnection
) -> None:
    """Somebody else has published to the stream, or a disk has a flipped bit."""
    await queue_of(writer).append(drained(1))
    (good,) = await live(store_of(admin))
    for data in (b"", b"{}", good.line.replace(b"stopped", b"STOPPED")):
        await writer.request(DEAD_LETTER_SUBJECT + "drained", data, 5)
    tally = Tally()
    store = store_of(admin)
    assert [each async for part in store.oldest(Selection(), tally) for each in part] == [good]
    assert tally.altered == 3


async def until_stopped(pid: int) -> None:
    """Wait until no thread of a process runs: on a busy machine a thread stops some ms later."""
    states = {""}
    while states != {"T"}:
        await asyncio.sleep(0.01)
        threads = Path(f"/proc/{pid}/task").glob("*/stat")
        states = {each.read_text().rsplit(")", 1)[1].split()[0] for each in threads}


async def test_reading_and_deleting_end_with_the_connection(tmp_path: Path) -> None:
    """Nobody waits for a time-out of his own."""
    async with embedded(tmp_path, wanted=LETTERS) as own, joined(own, "writer") as writer:
        await queue_of(writer).append(drained(10))
        store = store_of(writer)
        letters = await live(store)
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        await until_stopped(own.pid)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(each)
            for each in (live(store), store.mark_done(letters, "discarded"), store.extent())
        ]
        await asyncio.sleep(0.05)
        os.kill(own.pid, signal.SIGKILL)
        async with asyncio.timeout(2):
            for task in tasks:
                with pytest.raises(BrokerAway):
                    await task


async def test_each_role_may_do_with_letters_only_what_its_work_needs(
    nats: EmbeddedBroker, admin: BrokerConnection
) -> None:
    """A gateway cannot list or delete letters; a forwarder cannot touch them."""
    body = b'{"seq":1,"next_by_subj":">","batch":2}'
    async with joined(nats, "gateway") as gateway, joined(nats, "forward") as forward:
        await queue_of(gateway).append(drained(2))
        for connection in (gateway, forward):
            for subject in (
                f"$JS.API.DIRECT.GET.{DEAD_LETTERS}",
                f"$JS.API.STREAM.MSG.DELETE.{DEAD_LETTERS}",
                f"$JS.API.STREAM.PURGE.{DEAD_LETTERS}",
            ):
                with pytest.raises(BrokerAway, match="did not answer"):
                    await connection.request(subject, body, 0.05)
        with pytest.raises(BrokerAway, match="did not answer"):
            await forward.request(f"{DEAD_LETTER_SUBJECT}drained", b"x", 0.1)
    async with joined(nats, "writer") as writer:
        with pytest.raises(BrokerAway, match="did not answer"):
            await writer.request(f"$JS.API.STREAM.PURGE.{DEAD_LETTERS}", b"", 0.05)
    assert await count(admin) == 2


async def test_missing_stream_is_told(
    nats: EmbeddedBroker, admin: BrokerConnection, writer: BrokerConnection
) -> None:
    """An append fails in time, and a look says what to do."""
    await api(admin, f"STREAM.DELETE.{DEAD_LETTERS}")
    with pytest.raises(DeadLettersBroken, match="no stream"):
        await queue_of(writer, wait_s_max=0.6).append(drained(1))
    with pytest.raises(BrokerRefused, match="ingest stream apply"):
        await live(store_of(admin))


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
