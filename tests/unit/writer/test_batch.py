"""Batches: when a batch is closed, how large it may be, and where it is cut."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.buffers.memory import MemoryBuffer
from ingest.model.block import Ack, Block
from ingest.system.clock import monotonic_s
from ingest.writer.batch import APART_S, Batch, BatchCap, Gatherer, halves, in_pieces
from tests.support.journals import make_block

ROWS_MIN, ROWS_MAX = 100, 1_000


def make_buffer() -> MemoryBuffer:
    """Make a buffer that is never full."""
    return MemoryBuffer(rows_max=100_000, bytes_max=1 << 26, put_wait_s_max=0)


async def put(buffer: MemoryBuffer, *rows: int, age_s: float = 0.0) -> list[Block]:
    """Put blocks of so many rows."""
    blocks = [make_block(each, age_s=age_s) for each in rows]
    for block in blocks:
        (await buffer.reserve(block.rows, len(block.tuples))).put(block)
    return blocks


def gatherer_of(buffer: MemoryBuffer, *, linger_s: float = 0.05) -> Gatherer:
    """Make a gatherer with the defaults of the service, but for a longer linger."""
    return Gatherer(buffer, BatchCap(ROWS_MIN, ROWS_MAX, write_s_max=10), linger_s=linger_s)


async def gathered(gatherer: Gatherer) -> Batch:
    """Gather a batch that must come within a second."""
    async with asyncio.timeout(1):
        batch = await gatherer.gather()
    assert batch is not None
    assert batch.rows == sum(block.rows for block in batch.blocks)
    return batch


async def test_batch_closes_by_time_after_the_first_reading() -> None:
    """A few readings wait as long as the linger, and not shorter."""
    buffer = make_buffer()
    blocks = await put(buffer, 1)
    began_s = blocks[0].received_s
    task = asyncio.create_task(gathered(gatherer_of(buffer)))
    await asyncio.sleep(0.02)
    blocks += await put(buffer, 2)
    batch = await task
    assert batch == Batch(blocks, 3, "time")
    assert 0.045 <= monotonic_s() - began_s < 0.3


async def test_linger_is_measured_from_the_receipt_of_the_first() -> None:
    """A reading that has waited elsewhere (buffer full, given back) does not wait again."""
    buffer = make_buffer()
    await put(buffer, 1, age_s=10)
    async with asyncio.timeout(1):
        batch = await gatherer_of(buffer, linger_s=5).gather()
    assert batch is not None
    assert batch.trigger == "time"


async def test_batch_closes_by_count_at_once() -> None:
    """The batch is closed by the reading that makes it large enough."""
    buffer = make_buffer()
    task = asyncio.create_task(gathered(gatherer_of(buffer, linger_s=60)))
    blocks = await put(buffer, 60)
    await asyncio.sleep(0.01)
    assert not task.done()
    blocks += await put(buffer, 40)
    assert await task == Batch(blocks, 100, "count")


async def test_batch_comes_not_sooner_than_the_linger_after_the_one_before() -> None:
    """So a stream of posts makes few batches; but a large one does not wait."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer)
    await put(buffer, 100)
    began_s = monotonic_s()
    await gathered(gatherer)
    assert monotonic_s() - began_s < 0.04, "there was no batch before"
    closed_s = monotonic_s()
    task = asyncio.create_task(gathered(gatherer))
    blocks = await put(buffer, 100)
    await asyncio.sleep(0.01)
    blocks += await put(buffer, 200)
    assert await task == Batch(blocks, 300, "count")
    assert monotonic_s() - closed_s >= 0.045
    gatherer = gatherer_of(buffer, linger_s=60)
    await put(buffer, 100)
    await gathered(gatherer)
    task = asyncio.create_task(gathered(gatherer))
    await asyncio.sleep(0)
    blocks = await put(buffer, *[500] * 2)
    assert await task == Batch(blocks, 1_000, "count"), "so many never wait"


@pytest.mark.parametrize("waits", [False, True])
async def test_batch_for_which_a_post_waits_is_closed_at_once(waits: bool) -> None:
    """It takes what else is there along, and the next batch does not wait longer for it."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer, linger_s=60)
    await put(buffer, 100)
    first = await gathered(gatherer)
    task = asyncio.create_task(gathered(gatherer))
    blocks = await put(buffer, 3)
    if waits:
        await asyncio.sleep(0.01)
        assert not task.done()
    awaited = make_block(1, ack=Ack())
    (await buffer.reserve(1, len(awaited.tuples), awaited=True)).put(awaited)
    await asyncio.sleep(0.01)
    assert not task.done(), "others may come while the first batch is written"
    buffer.settle(first.blocks)
    assert await task == Batch([*blocks, awaited], 4, "commit")
    task = asyncio.create_task(gathered(gatherer))
    await put(buffer, 100)
    await asyncio.sleep(0.01)
    assert not task.done(), "nobody waits for the commit of this one"
    buffer.give_back([*blocks, awaited])  # its write failed
    assert (await task).trigger == "commit"


async def test_batches_that_posts_wait_for_come_apart_if_they_have_readings_of_others() -> None:
    """Else one client that waits would make a batch of each few readings of all others."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer, linger_s=60)
    await put(buffer, 100)
    buffer.settle((await gathered(gatherer)).blocks)
    closed_s = monotonic_s()
    for _ in range(50):
        awaited = make_block(1, ack=Ack())
        (await buffer.reserve(1, len(awaited.tuples), awaited=True)).put(awaited)
        buffer.settle((await gathered(gatherer)).blocks)
    assert 0.9 * APART_S < monotonic_s() - closed_s < 50 * APART_S, "only the first one waits"


@pytest.mark.parametrize(("rows_max", "bytes_max"), [(1_000, 1 << 26), (100_000, 1 << 20)])
async def test_a_small_buffer_is_not_full_before_a_batch_is_closed(
    rows_max: int, bytes_max: int
) -> None:
    """Posts would wait for room, and then be refused."""
    buffer = MemoryBuffer(rows_max=rows_max, bytes_max=bytes_max, put_wait_s_max=0)
    gatherer = gatherer_of(buffer, linger_s=60)
    for _ in range(2):
        blocks = await put(buffer, 150, 110)
        assert (await gathered(gatherer)).blocks == blocks


async def test_batch_takes_all_that_waited_for_a_writer_up_to_the_cap() -> None:
    """Large batches make the throughput when many readings wait."""
    buffer = make_buffer()
    blocks = await put(buffer, *[90] * 20)
    gatherer = gatherer_of(buffer)
    assert await gathered(gatherer) == Batch(blocks[:11], 990, "backlog")
    assert await gathered(gatherer) == Batch(blocks[11:], 810, "count")


async def test_block_larger_than_a_shrunk_cap_goes_alone_and_whole() -> None:
    """A block is never split."""
    buffer = make_buffer()
    blocks = await put(buffer, 5, 900, 5)
    cap = BatchCap(ROWS_MIN, ROWS_MAX, write_s_max=10)
    cap.shrink(10)
    gatherer = Gatherer(buffer, cap, linger_s=0.0)
    batches = [await gathered(gatherer) for _ in range(3)]
    assert [batch.blocks for batch in batches] == [[block] for block in blocks]


async def test_drain_closes_batches_at_once_and_then_says_none() -> None:
    """At a stop no batch waits. When all blocks are taken, there is no batch any more."""
    buffer = make_buffer()
    blocks = await put(buffer, 1, 1)
    gatherer = gatherer_of(buffer, linger_s=60)
    task = asyncio.create_task(gathered(gatherer))
    await asyncio.sleep(0.01)
    buffer.shut_inlet()
    assert await task == Batch(blocks, 2, "drain")
    assert await gatherer.gather() is None


async def test_idle_gatherers_end_when_the_buffer_shuts() -> None:
    """Two writers without work both end at a stop."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer)
    tasks = [asyncio.create_task(gatherer.gather()) for _ in range(2)]
    await asyncio.sleep(0.01)
    buffer.shut_inlet()
    async with asyncio.timeout(1):
        assert await asyncio.gather(*tasks) == [None, None]


async def test_two_writers_share_the_readings_in_order() -> None:
    """Only one gathers at a time. So slow posts make one batch, and not two halves."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer, linger_s=0.03)
    tasks = [asyncio.create_task(gatherer.gather()) for _ in range(2)]
    await asyncio.sleep(0.01)
    blocks = await put(buffer, 1, 1, 1)
    done, waiting = await asyncio.wait(tasks, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [Batch(blocks, 3, "time")]
    assert len(waiting) == 1
    buffer.shut_inlet()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.02])
async def test_gather_cancelled_loses_nothing(after_s: float) -> None:
    """It may wait for a first reading, for more of them, or for the lock."""
    buffer = make_buffer()
    gatherer = gatherer_of(buffer, linger_s=0.02)
    tasks = [asyncio.create_task(gatherer.gather()) for _ in range(2)]
    if after_s:
        await put(buffer, 3)
    await asyncio.sleep(after_s)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    batches = [each for each in results if isinstance(each, Batch)]
    if not after_s:
        await put(buffer, 3)
    if not batches:
        batches = [await gathered(gatherer)]
    assert [batch.rows for batch in batches] == [3]


def test_cap_halves_after_trouble_and_doubles_after_clean_writes() -> None:
    """It stays between `rows_min` and `rows_max`."""
    cap = BatchCap(100, 5_000, write_s_max=10)
    sizes = []
    for _ in range(8):
        cap.shrink(cap.rows)
        sizes.append(cap.rows)
    assert sizes == [2_500, 1_250, 625, 312, 156, 100, 100, 100]
    sizes = []
    for _ in range(7):
        cap.written(cap.rows, 0.1)
        sizes.append(cap.rows)
    assert sizes == [200, 400, 800, 1_600, 3_200, 5_000, 5_000]


def test_cap_follows_the_size_that_met_trouble_and_never_rises_by_it() -> None:
    """The cap becomes half of the failed batch, not half of the cap."""
    cap = BatchCap(100, 5_000, write_s_max=10)
    cap.shrink(1_000)
    assert cap.rows == 500
    cap.shrink(5_000)  # another writer's, from before
    assert cap.rows == 500
    cap.shrink(1)
    assert cap.rows == 100


@given(st.lists(st.integers(1, 5_000), min_size=2, max_size=60))
def test_halves_are_both_there_in_order_and_as_even_as_blocks_allow(rows: list[int]) -> None:
    """No other cut between two blocks would be more even."""
    blocks = [Block(b"", each, received_s=0, received_us=0, newest_ts_us=0) for each in rows]
    first, second = halves(blocks)
    assert first
    assert second
    assert first + second == blocks
    total = sum(rows)
    uneven = abs(total - 2 * sum(block.rows for block in first))
    assert uneven == min(abs(total - 2 * sum(rows[:cut])) for cut in range(1, len(rows)))


def test_cap_grows_after_quick_writes_and_shrinks_before_the_deadline() -> None:
    """A slow database gets batches that it can write in time."""
    cap = BatchCap(100, 20_000, write_s_max=10)
    cap.written(20_000, 6)
    assert cap.rows == 10_000
    cap.written(10_000, 3)  # neither near the deadline nor far from it
    assert cap.rows == 10_000
    cap.written(40, 9)  # few rows, but slow all the same
    assert cap.rows == 100
    cap.written(100, 1)
    assert cap.rows == 200


def test_pieces_have_whole_blocks_and_the_last_one_comes_first() -> None:
    """Of at most so many rows; a larger block is alone."""
    blocks = [make_block(rows) for rows in (40, 60, 1, 300, 99, 1, 1)]
    pieces = in_pieces(blocks, 100)
    rows = [[each.rows for each in piece] for piece in pieces]
    assert rows == [[1], [99, 1], [300], [1], [40, 60]]
    assert [each for piece in pieces[::-1] for each in piece] == blocks
    assert in_pieces([], 100) == []
