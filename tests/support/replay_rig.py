"""The second half of a writer with its automatic replay, over dead letters in files or a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.app.database import make_sink
from ingest.app.writing import WritingHalf
from ingest.buffers.memory import MemoryBuffer
from ingest.config.declared_tables import make_tables
from ingest.config.settings import Settings
from ingest.dead_letters.auto_replay import Replayer, ReplaySource
from ingest.dead_letters.folder.segments import live_letters, mark_done
from ingest.dead_letters.folder.store import hold_replay_lock
from ingest.dead_letters.manual_replay import Item, ManualReplay, Summary, item_of_letter
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.dead_letters.store import LetterStore, LiveLetter, Selection, Tally, once
from ingest.formats.post import Rules
from ingest.model.block import Block
from ingest.model.errors import IngestError, ReplayStopped
from ingest.model.ledger import Gauges, Ledger
from ingest.model.ports import Sink
from ingest.model.reading import Letter
from ingest.roles import letters as replay
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.letters import StreamBackend, StreamLetterStore, StreamReplay
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.messages import StreamMessages
from ingest.roles.nats.protocol import DEAD_LETTERS, REPLAY
from tests.support.brokers import LETTERS, api, joined
from tests.support.letters import LetterFiles, folder_queue, keep, read

ACK_WAIT_S = 0.5
SETTINGS = Settings(
    database_unsafe=True,  # the tests' server does not fsync
    dlq_replay_rows_per_s=100_000,
    batch_linger_s=0.001,
    wait_s_max=0.1,
)


class Half:
    """The real second half of a service, and its replay of some dead letters."""

    def __init__(
        self, url: str, letters: DeadLetterQueue, source: ReplaySource, settings: Settings
    ) -> None:
        self.ledger = Ledger()
        self.buffer = MemoryBuffer(rows_max=10_000, bytes_max=1 << 24, put_wait_s_max=0.1)
        self.letters = letters
        self.up = True
        self.stopping = asyncio.Event()
        half = WritingHalf(settings, outlet=self.buffer, ledger=self.ledger)
        self.halted = half.halted
        self.sink = make_sink(url, settings)
        half.sinks.append(self.sink)
        (self.writer,) = half.make_writers(letters)
        self.database_state = half.database_state
        self.replayer = Replayer(
            source,
            inlet=self.buffer,
            outlet_stats=self.buffer.stats,
            ledger=self.ledger,
            database_up=lambda: self.up and self.database_state.is_open,
            tables=make_tables(settings),
            post_rows_max=min(settings.post_rows_max, 100),
            rows_per_s=settings.dlq_replay_rows_per_s,
            pause_s=0.01,
        )
        self.ledger.gauges = Gauges(self.buffer.stats, letters.stats, lambda: self.up, lambda: None)

    async def post(self, block: Block) -> None:
        """Post live readings."""
        (await self.buffer.reserve(block.rows, len(block.tuples))).put(block)
        self.ledger.received += block.rows


@asynccontextmanager
async def running(half: Half, *, writing: bool = True) -> AsyncIterator[Half]:
    """Run writer and replay; stop both by their events, in bounded time. The balance is 0 then."""
    await half.letters.open()
    tasks = [
        asyncio.create_task(half.replayer.run(half.stopping)),
        asyncio.create_task(half.letters.tidy(half.stopping)),
    ]
    if writing:
        tasks.append(asyncio.create_task(half.writer.run()))
    try:
        yield half
    finally:
        half.stopping.set()
        async with asyncio.timeout(5):
            await tasks[0]
        half.buffer.shut_inlet()
        half.halted.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        await half.letters.close()
        assert not writing or half.ledger.imbalance == 0


class InFolder:
    """Dead letters in files."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    async def write(self, letters: Sequence[Letter]) -> None:
        """Write letters as an earlier process."""
        store = LetterFiles(self.folder)
        keep(store, letters)
        store.close()

    async def read(self) -> list[Letter]:
        """Return the live letters."""
        return read(self.folder)

    def queue(self, bytes_max: int = 1 << 30) -> DeadLetterQueue:
        """Return the letters, not open."""
        return folder_queue(
            self.folder, bytes_max=bytes_max, segment_bytes=bytes_max // 16, keep_days=0
        )

    def half(self, settings: Settings = SETTINGS, *, bytes_max: int = 1 << 30) -> Half:
        """Make a half whose replay may run."""
        letters = self.queue(bytes_max)
        return Half(self.url, letters, letters.backend.replay_source(0.01), settings)

    def running(
        self, settings: Settings = SETTINGS, *, writing: bool = True
    ) -> AbstractAsyncContextManager[Half]:
        """Run a writer and its replay."""
        return running(self.half(settings), writing=writing)


class InStream:
    """Dead letters in the stream of a broker. `admin` is a connection of the admin."""

    def __init__(self, nats: EmbeddedBroker, admin: BrokerConnection, url: str) -> None:
        self.nats = nats
        self.admin = admin
        self.url = url

    async def write(self, letters: Sequence[Letter]) -> None:
        """Append letters as an earlier process."""
        async with joined(self.nats, "writer") as connection:
            await stream_queue(connection).append(letters)

    async def read(self) -> list[Letter]:
        """Return the live letters."""
        return await kept(self.admin)

    def half(self, connection: BrokerConnection, settings: Settings = SETTINGS) -> Half:
        """Make a half whose replay may run."""
        backend = StreamBackend(connection)
        letters = DeadLetterQueue(backend, bytes_max=LETTERS.stream["max_bytes"])
        source = StreamReplay(
            connection,
            StreamMessages(connection),
            backend.replaying,
            pause_s=0.02,
        )
        return Half(self.url, letters, source, settings)

    @asynccontextmanager
    async def running(
        self, settings: Settings = SETTINGS, *, writing: bool = True
    ) -> AsyncIterator[Half]:
        """Run a writer and its replay."""
        async with (
            joined(self.nats, "writer") as connection,
            running(self.half(connection, settings), writing=writing) as half,
        ):
            yield half


@asynccontextmanager
async def stream_with_short_waits(nats: EmbeddedBroker, url: str) -> AsyncIterator[InStream]:
    """Give dead letters in a stream whose message for the replay is given again soon."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replay, "ACK_WAIT_S", ACK_WAIT_S)
        async with joined(nats, "admin") as admin:
            info = await api(admin, f"CONSUMER.INFO.{DEAD_LETTERS}.{REPLAY}")
            config = info["config"] | {"ack_wait": int(ACK_WAIT_S * 1e9)}
            body = {"stream_name": DEAD_LETTERS, "config": config, "action": "update"}
            subject = f"CONSUMER.CREATE.{DEAD_LETTERS}.{REPLAY}"
            assert "error" not in await api(admin, subject, body)
            yield InStream(nats, admin, url)


async def until_live(place: InFolder | InStream, count: int) -> None:
    """Wait until so many letters are live."""
    async with asyncio.timeout(15):
        while len(await place.read()) != count:  # noqa: ASYNC110  other processes may mark them
            await asyncio.sleep(0.02)


async def until_replayed(half: Half, holds: Callable[[int], bool]) -> None:
    """Wait until something holds of the number of readings that were sent."""
    async with asyncio.timeout(5):
        while not holds(half.ledger.replayed):  # noqa: ASYNC110  a counter has no event
            await asyncio.sleep(0.001)


async def rows(connection: asyncpg.Connection) -> int:
    """Count the table's rows."""
    count: int = await connection.fetchval("select count(*) from readings")
    return count


def stream_queue(
    connection: BrokerConnection, bytes_max: int = LETTERS.stream["max_bytes"], **waits: float
) -> DeadLetterQueue:
    """Return dead letters in the stream, in the running event loop."""
    return DeadLetterQueue(StreamBackend(connection, **waits), bytes_max=bytes_max)


def store_of(connection: BrokerConnection) -> StreamLetterStore:
    """Return the letters of the stream."""
    return StreamLetterStore(StreamMessages(connection))


async def live(store: LetterStore, where: Selection = Selection()) -> list[LiveLetter]:  # noqa: B008
    """Return the live letters, oldest first, with every copy."""
    return [each async for part in store.oldest(where, Tally()) for each in part]


async def kept(connection: BrokerConnection) -> list[Letter]:
    """Return the live letters of the stream as they are listed: each once."""
    return [each.letter async for each in once(store_of(connection).oldest(Selection(), Tally()))]


async def count(connection: BrokerConnection) -> int:
    """Return how many messages the stream has."""
    found: int = (await api(connection, f"STREAM.INFO.{DEAD_LETTERS}"))["state"]["messages"]
    return found


async def change(connection: BrokerConnection, **settings: Any) -> None:
    """Change settings of the stream, as an operator may."""
    config = (await api(connection, f"STREAM.INFO.{DEAD_LETTERS}"))["config"]
    answer = await api(connection, f"STREAM.UPDATE.{DEAD_LETTERS}", config | settings)
    assert "error" not in answer, answer


RULES = Rules(post_rows_max=5_000, ts_min_us=0, ts_ahead_us_max=86_400_000_000)
LOCK_S_MAX = 0.02


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses of replays, between blocks and between tries; they clean up each time."""
    monkeypatch.setattr("ingest.dead_letters.auto_replay.UNLOCKED_S_MIN", 0.0005)
    monkeypatch.setattr("ingest.dead_letters.folder.store.ANEW_S", 0.0)
    monkeypatch.setattr("ingest.dead_letters.queue.TIDY_S", 0.005)
    monkeypatch.setattr("ingest.dead_letters.manual_replay.backoff_s", lambda *_, **__: 0.0)


async def replay_by_hand(folder: Path, sink: Sink) -> Summary:
    """Replay all live letters of a folder, or as many as the table takes; its figures must fit.

    It replays none while the service's own replay waits for the outcome of a block.
    """

    async def done(items: Sequence[Item]) -> None:
        lines = [each.source for each in items if each.source is not None]
        mark_done(lines, "replayed")

    by_hand = ManualReplay(sink=sink, rules=RULES, done=done)
    summary = by_hand.summary
    try:
        lock = await hold_replay_lock(folder, wait_s_max=LOCK_S_MAX)
    except IngestError:
        return summary
    with lock:
        items = [item_of_letter(each) for each in live_letters(folder)]
        with contextlib.suppress(ReplayStopped):
            await by_hand.run(items)
            assert summary.letters + sum(summary.refused.values()) == len(items)
    assert summary.rows == summary.new + summary.duplicate
    await sink.close()
    return summary
