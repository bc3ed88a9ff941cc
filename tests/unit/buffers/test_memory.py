"""The buffer in memory: calls that come often are fast, and no block is kept for ever.

What every buffer promises is tested in tests/contract.
"""

from __future__ import annotations

import asyncio
import gc

import pytest

from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import Block
from ingest.model.errors import BufferFull
from ingest.system.clock import monotonic_s
from tests.support.journals import make_block, size_of


async def test_put_of_another_size_than_reserved_fails_loudly() -> None:
    """This is a fault of ours and not of the client: room would be lost, or used twice."""
    buffer = MemoryBuffer(rows_max=10, bytes_max=10_000, put_wait_s_max=0)
    exact = size_of(2)
    for rows, size_bytes in ((1, exact[1]), (3, exact[1]), (2, 1), (2, exact[1] + 1)):
        reservation = await buffer.reserve(rows, size_bytes)
        with pytest.raises(AssertionError):
            reservation.put(make_block(2))
        reservation.release()
        assert buffer.stats().size_bytes == 0


async def test_block_settled_twice_fails_loudly() -> None:
    """This is a fault of ours: the room would come free twice."""
    buffer = MemoryBuffer(rows_max=10, bytes_max=10_000, put_wait_s_max=0)
    assert buffer.take_in(make_block(1))
    taken = buffer.take(1)
    buffer.settle(taken)
    with pytest.raises(KeyError):
        buffer.settle(taken)


async def test_refusing_stays_cheap_with_many_blocks_in_hand() -> None:
    """Under overload posts are refused by the thousand while writers hold thousands of blocks."""
    buffer = MemoryBuffer(rows_max=10_000, bytes_max=1 << 26, put_wait_s_max=0)
    for _ in range(10_000):
        block = make_block(1)
        (await buffer.reserve(1, len(block.tuples))).put(block)
    taken = buffer.take(10_000)
    began_s = monotonic_s()
    for _ in range(5_000):
        with pytest.raises(BufferFull):
            await buffer.reserve(1, 1)
    assert monotonic_s() - began_s < 1.0
    buffer.settle(taken)


async def test_thousands_of_posts_that_give_up_together_do_not_stop_the_loop() -> None:
    """While the database is away, all posts of a fleet end their wait at the same time."""
    buffer = MemoryBuffer(rows_max=1, bytes_max=1 << 26, put_wait_s_max=0.05)
    reservation = await buffer.reserve(1, 1)
    posts = [asyncio.create_task(buffer.reserve(1, 1)) for _ in range(3_000)]
    began_s = monotonic_s()
    results = await asyncio.gather(*posts, return_exceptions=True)
    assert all(isinstance(each, BufferFull) for each in results)
    assert monotonic_s() - began_s < 3.0
    reservation.release()
    assert buffer.stats().size_bytes == 0


async def test_settled_blocks_are_not_kept() -> None:
    """Memory comes free with the room: nothing in the buffer still points to a block."""
    buffer = MemoryBuffer(rows_max=100, bytes_max=1 << 26, put_wait_s_max=0)
    before = blocks_alive()
    for reservation in [await buffer.reserve(*size_of(10)) for _ in range(10)]:
        reservation.put(make_block(10))
    taken = buffer.take(60)
    buffer.give_back(taken[3:])
    buffer.settle(taken[:3])
    del taken
    buffer.settle(buffer.take(100))
    assert blocks_alive() == before


def blocks_alive() -> int:
    """Return how many blocks there are in the whole process."""
    gc.collect()
    return sum(type(each) is Block for each in gc.get_objects())
