"""The path in process: bodies to committed rows, without HTTP (compare runs, not machines).

pytest benchmarks/bench_path.py

Decode, the buffer in memory, two writers and a durable PostgreSQL, wired as the service wires them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.database import Database, count_rows, fresh_table
from benchmarks.processes import scratch
from benchmarks.rounds import run_rounds
from ingest.app.rules import make_rules
from ingest.app.writing import WritingHalf, make_sink
from ingest.buffers.memory import MemoryBuffer
from ingest.config.settings import Settings
from ingest.dead_letters.folder.backend import FolderBackend
from ingest.dead_letters.queue import DeadLetterQueue
from ingest.formats.json_post import decode
from ingest.formats.post import Post
from ingest.model.ack import Ack
from ingest.model.ledger import Ledger
from ingest.system.clock import monotonic_s, unix_us

START_US = 1_700_000_000_000_000
ITEM = '{"device_id":"device-%03d","metric":"temperature","ts":%d,"value":21.5}'
ROUNDS = 10
_numbers = itertools.count()


class Wired:
    """Everything between the receiver's HTTP and the table. Made on the loop that it runs on."""

    def __init__(self, url: str, dead_letters: DeadLetterQueue) -> None:
        settings = Settings()
        self._rules = make_rules(settings)
        self._buffer = MemoryBuffer(
            rows_max=settings.buffer_rows_max,
            bytes_max=settings.buffer_bytes_max,
            put_wait_s_max=60,
        )
        half = WritingHalf(settings, outlet=self._buffer, ledger=Ledger())
        half.sinks += [make_sink(url, settings) for _ in range(settings.writers)]
        self._writers = [
            asyncio.create_task(each.run()) for each in half.make_writers(dead_letters)
        ]

    async def post(self, body: bytes) -> None:
        """Take a body in as the receiver does; return once all of it is committed."""
        block, errors, _ = decode(body, Post(None, False, unix_us(), monotonic_s(), self._rules))
        assert block is not None, errors
        block.ack = Ack()
        reservation = await self._buffer.reserve(block.rows, len(block.tuples))
        await reservation.put(block)
        await block.ack.wait()

    async def post_all(self, bodies: list[bytes]) -> None:
        """Take bodies in that arrive at the same time."""
        await asyncio.gather(*map(self.post, bodies))

    async def close(self) -> None:
        """Write what is left, and end."""
        self._buffer.shut_inlet()
        await asyncio.gather(*self._writers)


@pytest.fixture
def wired(database: Database) -> Iterator[Wired]:
    """Give the path on an empty table."""
    fresh_table(database.url)
    with scratch() as folder:
        letters = DeadLetterQueue(
            FolderBackend(folder / "dead-letters", segment_bytes=1 << 26, keep_days=7),
            bytes_max=1 << 30,
        )

        async def start() -> Wired:
            await letters.open()
            return Wired(database.url, letters)

        path = database.run(start())
        yield path
        database.run(path.close())
        database.run(letters.close())


def bodies_of(posts: int, rows: int) -> list[bytes]:
    """Give bodies of readings that no call gave before."""
    items = ((ITEM % (n % 200, START_US + n)) for n in _numbers)
    if rows == 1:
        return [next(items).encode() for _ in range(posts)]
    return [f"[{','.join(itertools.islice(items, rows))}]".encode() for _ in range(posts)]


@pytest.mark.parametrize(
    ("posts", "rows"),
    [(1, 1), (1, 100), (5_000, 1), (1_000, 100), (20, 5_000)],
    ids=["1-of-1", "1-of-100", "5,000-of-1", "1,000-of-100", "20-of-5,000"],
)
def test_bodies_to_committed_rows(
    benchmark: BenchmarkFixture, database: Database, wired: Wired, posts: int, rows: int
) -> None:
    """All posts arrive at once; until the last one is in the table."""
    rounds = run_rounds(
        benchmark,
        lambda bodies: database.run(wired.post_all(bodies)),
        lambda: bodies_of(posts, rows),
        ROUNDS,
        warmup_rounds=1,
    )
    assert count_rows(database.url) == rounds * posts * rows
