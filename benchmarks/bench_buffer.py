"""The cost of the buffer for a post: reserve, put, take, settle (compare runs, not machines).

pytest benchmarks/bench_buffer.py
"""

from __future__ import annotations

import asyncio

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import Block
from ingest.model.errors import BufferFull
from ingest.model.reading import Reading
from ingest.model.rows import encode_reading

POSTS = 1_000
ROW = encode_reading(Reading(0, "device-1", "temperature", 21.5))


def block_of(rows: int) -> Block:
    """Make a block of so many rows."""
    return Block(ROW * rows, rows, received_s=0.0, received_us=0, newest_ts_us=0)


@pytest.mark.parametrize("rows", [1, 100])
def test_post_through_a_buffer_with_room(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, rows: int
) -> None:
    """A thousand posts in, taken in batches of 5,000 rows, settled."""
    buffer = MemoryBuffer(rows_max=POSTS * rows, bytes_max=1 << 30, put_wait_s_max=1)
    blocks = [block_of(rows) for _ in range(POSTS)]

    async def through() -> None:
        for block in blocks:
            (await buffer.reserve(rows, len(block.tuples))).put(block)
        while taken := buffer.take(5_000):
            buffer.settle(taken)

    benchmark(lambda: loop.run_until_complete(through()))
    assert buffer.stats().rows == 0


def test_post_that_waits_for_room(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop
) -> None:
    """A thousand posts at a buffer with space for a tenth of them: the cost of back-pressure."""
    buffer = MemoryBuffer(rows_max=100, bytes_max=1 << 30, put_wait_s_max=60)

    async def post() -> None:
        block = block_of(1)
        (await buffer.reserve(1, len(block.tuples))).put(block)

    async def through() -> None:
        posts = [asyncio.create_task(post()) for _ in range(POSTS)]
        settled = 0
        while settled < POSTS:
            await buffer.wait_rows(1)
            taken = buffer.take(100)
            settled += len(taken)
            buffer.settle(taken)
        await asyncio.gather(*posts)

    benchmark(lambda: loop.run_until_complete(through()))
    assert buffer.stats().rows == 0


def test_post_refused_at_once(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop) -> None:
    """A thousand posts at a full buffer, whose blocks the writers have taken."""
    buffer = MemoryBuffer(rows_max=POSTS, bytes_max=1 << 30, put_wait_s_max=0)

    async def fill() -> None:
        for _ in range(POSTS):
            (await buffer.reserve(1, len(ROW))).put(block_of(1))
        buffer.take(POSTS)

    async def refused() -> int:
        count = 0
        for _ in range(POSTS):
            try:
                await buffer.reserve(1, len(ROW))
            except BufferFull:
                count += 1
        return count

    loop.run_until_complete(fill())
    assert benchmark(lambda: loop.run_until_complete(refused())) == POSTS
