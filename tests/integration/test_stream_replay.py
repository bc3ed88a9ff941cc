"""The automatic replay of a stream's dead letters, with a real broker and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from ingest.app.writing import WritingHalf, make_sink
from ingest.broker.connection import BrokerConnection
from ingest.broker.messages import StreamMessages
from ingest.broker.roles import DEAD_LETTER_SUBJECT, DEAD_LETTERS, REPLAY
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import BlockSender, Replayer
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.stream import replay
from ingest.dead_letters.stream.backend import StreamBackend
from ingest.dead_letters.stream.replay import StreamReplay
from ingest.embedded.broker import EmbeddedBroker
from ingest.model.errors import BrokerAway
from ingest.model.ledger import Gauges, Ledger
from ingest.model.letter import EXHAUSTED, REFUSED, Letter
from ingest.model.reading import Reading
from ingest.model.verdict import LETTERS_FULL
from tests.support.brokers import LETTERS, api, joined, until
from tests.support.letters import drained, invalid
from tests.support.stream_letters import change, count, kept, stream_queue

ACK_WAIT_S = 0.5
SETTINGS = Settings(
    database_unsafe=True,  # the tests' server does not fsync
    batch_linger_s=0.001,
    wait_s_max=0.1,
)


@pytest.fixture
async def admin(
    nats: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BrokerConnection]:
    """Give a connection of the admin; the replay's message is given again soon."""
    monkeypatch.setattr(replay, "ACK_WAIT_S", ACK_WAIT_S)
    async with joined(nats, "admin") as connection:
        info = await api(connection, f"CONSUMER.INFO.{DEAD_LETTERS}.{REPLAY}")
        config = info["config"] | {"ack_wait": int(ACK_WAIT_S * 1e9)}
        body = {"stream_name": DEAD_LETTERS, "config": config, "action": "update"}
        subject = f"CONSUMER.CREATE.{DEAD_LETTERS}.{REPLAY}"
        assert "error" not in await api(connection, subject, body)
        yield connection


class Half:
    """The real second half of a writer, with dead letters in the stream."""

    def __init__(self, connection: BrokerConnection, url: str, settings: Settings) -> None:
        self.ledger = Ledger()
        self.buffer = MemoryBuffer(rows_max=10_000, bytes_max=1 << 24, put_wait_s_max=0.1)
        self.stopping = asyncio.Event()
        self.halted = asyncio.Event()
        half = WritingHalf(settings, outlet=self.buffer, ledger=self.ledger, halted=self.halted)
        half.sinks.append(make_sink(url, settings))
        self.up = True
        backend = StreamBackend(connection)
        self.letters = DeadLetterQueue(backend, bytes_max=LETTERS.bytes_max)
        self.replayer = Replayer(
            StreamReplay(
                connection,
                StreamMessages(connection, DEAD_LETTERS),
                backend.replaying,
                pause_s=0.02,
            ),
            BlockSender(
                inlet=self.buffer,
                outlet_stats=self.buffer.stats,
                ledger=self.ledger,
                database_up=lambda: self.up and half.database_state.is_open,
                letters_full=lambda: half.database_state.hold_reason == LETTERS_FULL,
            ),
            post_rows_max=100,
            rows_per_s=100_000,
            pause_s=0.02,
        )
        (self.writer,) = half.make_writers(self.letters)
        self.ledger.gauges = Gauges(
            self.buffer.stats, self.letters.stats, lambda: True, lambda: None
        )


@asynccontextmanager
async def running(
    nats: EmbeddedBroker, url: str, settings: Settings = SETTINGS
) -> AsyncIterator[Half]:
    """Run a writer and its replay; stop both by their events."""
    async with joined(nats, "writer") as connection:
        half = Half(connection, url, settings)
        tasks = [
            asyncio.create_task(each)
            for each in (half.replayer.run(half.stopping), half.writer.run())
        ]
        try:
            yield half
        finally:
            half.stopping.set()
            async with asyncio.timeout(5):
                await asyncio.gather(tasks[0], return_exceptions=True)
            half.buffer.shut_inlet()
            half.halted.set()
            async with asyncio.timeout(10):
                await tasks[1]
            await half.letters.close()
            assert half.ledger.imbalance == 0


async def append(nats: EmbeddedBroker, letters: list[Letter]) -> None:
    """Append letters as an earlier process."""
    async with joined(nats, "writer") as connection:
        await stream_queue(connection).append(letters)


async def until_left(admin: BrokerConnection, number: int) -> None:
    """Wait until the stream has so many messages."""
    async with asyncio.timeout(8):
        while await count(admin) != number:  # noqa: ASYNC110  another process deletes them
            await asyncio.sleep(0.01)


async def until_consumer(
    admin: BrokerConnection, holds: Callable[[dict[str, Any]], bool], within_s: float = 5
) -> None:
    """Wait until something holds of the consumer of the replay."""
    async with asyncio.timeout(within_s):
        while not holds(await api(admin, f"CONSUMER.INFO.{DEAD_LETTERS}.{REPLAY}")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def rows(connection: asyncpg.Connection) -> int:
    """Count the table's rows."""
    number: int = await connection.fetchval("select count(*) from readings")
    return number


async def test_replay_brings_in_what_processes_left(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """Drained and exhausted letters are stored, those that come later too; others stay."""
    await append(nats, [*drained(250), *drained(130, reason=EXHAUSTED), invalid(b"{}")])
    async with running(nats, readings_url) as half:
        await until_left(admin, 1)
        await half.letters.append(drained(5))
        await until_left(admin, 1)
        assert half.ledger.replayed == half.ledger.committed == 385
    assert await rows(readings_connection) == 385
    assert [each.reason for each in await kept(admin)] == ["invalid"]


async def test_one_writer_replays_and_another_takes_over(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """Of two replays one works; if it has died, the other one goes on."""
    await append(nats, drained(400))
    async with running(nats, readings_url) as one:
        await until(lambda: one.ledger.replayed)
        async with running(nats, readings_url) as other:
            await until_left(admin, 0)
            assert other.ledger.replayed == 0
            assert one.ledger.replayed == 400
            one.stopping.set()
            await append(nats, drained(10))
            await until_left(admin, 0)
            assert other.ledger.replayed == 10
    assert await rows(readings_connection) == 410


async def test_replay_killed_between_commit_and_delete_doubles_nothing(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one sends the same letters again, and the key absorbs them."""
    await append(nats, drained(150))
    with monkeypatch.context() as patched:
        committed = asyncio.Event()

        async def die(*_: object) -> None:
            if committed.is_set():
                raise BrokerAway("killed")
            committed.set()
            await asyncio.Event().wait()

        patched.setattr(StreamMessages, "delete", die)
        async with joined(nats, "writer") as connection:
            half = Half(connection, readings_url, SETTINGS)
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
    assert await count(admin) == 150
    async with running(nats, readings_url) as half:
        await until_left(admin, 0)
        assert (half.ledger.committed, half.ledger.duplicate) == (50, 100)
    assert await rows(readings_connection) == 150


async def test_delete_that_fails_is_made_up_for(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker goes away between the commit and the delete."""
    await append(nats, drained(50))
    delete = StreamMessages.delete
    failures = iter([BrokerAway("gone"), BrokerAway("gone")])

    async def sometimes(self: StreamMessages, places: list[int]) -> None:
        if error := next(failures, None):
            raise error
        await delete(self, places)

    monkeypatch.setattr(StreamMessages, "delete", sometimes)
    async with running(nats, readings_url):
        await until_left(admin, 0)
    assert await rows(readings_connection) == 50


async def test_letters_that_fail_again_stay_once_and_hold_nobody_up(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """They are not appended a second time, whatever the broker has forgotten."""
    await change(admin, duplicate_window=100_000_000)
    await readings_connection.execute(FAIL_BAD)
    bad = drained(3, device="bad", reason=EXHAUSTED)
    await append(nats, [*bad, *drained(200), *drained(120, reason=EXHAUSTED)])
    async with running(nats, readings_url, replace(SETTINGS, retries_max=0)) as half:
        await until_left(admin, 100)  # the block of 100 that has `bad`
        await until(lambda: half.ledger.dead_lettered[EXHAUSTED] >= 300)
        assert await count(admin) == 100
        await readings_connection.execute("drop trigger fail_bad on readings")
        await until_left(admin, 0)
    assert await rows(readings_connection) == 323


async def test_row_refused_now_becomes_a_letter_of_that_reason(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """It is live once."""
    await readings_connection.execute("alter table readings add check (device_id <> 'bad')")
    await append(nats, [*drained(20), *drained(1, device="bad"), *drained(20)])
    async with running(nats, readings_url):
        await until_left(admin, 1)
        (letter,) = await kept(admin)
        assert (letter.reason, letter.code) == (REFUSED, "23514")
    assert await rows(readings_connection) == 40


async def test_row_without_a_partition_stays_until_there_is_one(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """The replay finds it refused again, and neither deletes its letter nor writes a second one."""
    await readings_connection.execute(
        """alter table readings rename to plain;
        create table readings (like plain, primary key (ts, device_id, metric, value))
        partition by range (ts)"""
    )
    await append(nats, drained(3, reason=EXHAUSTED))
    async with running(nats, readings_url) as half:
        await until(lambda: half.ledger.dead_lettered[EXHAUSTED] >= 3)
        assert await count(admin) == 3
        await readings_connection.execute(
            "create table whole partition of readings for values from (minvalue) to (maxvalue)"
        )
        await until_left(admin, 0)
    assert await rows(readings_connection) == 3


async def test_letter_that_no_row_can_hold_is_passed_over(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
) -> None:
    """Also a message that is no letter, and also if the broker gives it as the first one."""
    odd = drained(2)
    odd[0] = odd[0]._replace(reading=None, original=b"{}")
    odd[1] = odd[1]._replace(reading=Reading(1_700_000_000_000_000, "d" * 300, "m", 1.0))
    await admin.request(f"{DEAD_LETTER_SUBJECT}drained", b"no letter", 5)
    await append(nats, [*odd, *drained(20)])
    async with running(nats, readings_url):
        await until_left(admin, 3)
        await append(nats, drained(5))
        await until_left(admin, 3)
        # Nothing is left to do for it: they are for a replay by hand.
        await until_consumer(admin, lambda info: info["num_pending"] + info["num_ack_pending"] == 0)
    assert await rows(readings_connection) == 25


async def test_writer_whose_database_is_away_leaves_the_replay_to_others(
    nats: EmbeddedBroker,
    admin: BrokerConnection,
    readings_url: str,
    readings_connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer whose database is away does not even ask for them."""
    monkeypatch.setattr(replay, "PULL_S", 0.1)
    monkeypatch.setattr(replay, "LATE_S", 0.1)
    async with running(nats, readings_url) as half:
        half.up = False
        await asyncio.sleep(0.3)  # it may have asked just before
        await append(nats, drained(60))
        await asyncio.sleep(0.2)
        assert half.ledger.replayed == 0
        await until_consumer(admin, lambda info: info["delivered"]["consumer_seq"] == 0)
        half.up = True
        await until_left(admin, 0)
    assert await rows(readings_connection) == 60


FAIL_BAD = """create function fail_bad() returns trigger language plpgsql as $$ begin
    if new.device_id = 'bad' then raise exception using errcode = '40001'; end if;
    return new; end $$;
create trigger fail_bad before insert on readings for each row execute function fail_bad()"""
