"""What every buffer promises to the writers: order, and blocks that count until settled."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from ingest.model.block import Ack
from tests.contract.buffers import PLENTY, MakeBuffer, contents, empty, put, put_rows, spin
from tests.support.journals import make_block

# A stream keeps the wall time in microseconds.
about = partial(pytest.approx, rel=0, abs=0.01)


async def test_take_gives_whole_blocks_in_order(make: MakeBuffer) -> None:
    """At most `rows_max` rows, but a first block however large. No smaller one overtakes."""
    buffer = make(100, PLENTY, 1)
    first, second, third = await put_rows(buffer, 3, 5, 1)
    assert contents(buffer.take(4)) == contents([first])
    assert contents(buffer.take(6)) == contents([second, third])
    (large,) = await put_rows(buffer, 50)
    assert contents(buffer.take(1)) == contents([large])
    assert buffer.take(100) == []


async def test_stats_hold_taken_blocks_until_settled(make: MakeBuffer) -> None:
    """Blocks count until they are settled. Reserved room does not count as rows."""
    buffer = make(10, PLENTY, 1)
    block = make_block(4)
    size_bytes = len(block.tuples)
    reservation = await buffer.reserve(4, size_bytes)
    stats = buffer.stats()
    assert (stats.rows, stats.rows_waiting, stats.size_bytes) == (0, 0, size_bytes)
    await reservation.put(block)
    taken = buffer.take(10)
    stats = buffer.stats()
    assert (stats.rows, stats.rows_waiting, stats.blocks_waiting) == (4, 0, 0)
    assert stats.size_bytes == size_bytes
    buffer.settle(taken)
    assert empty(buffer)


async def test_given_back_blocks_come_first_again_in_order(make: MakeBuffer) -> None:
    """A failed batch is taken again before younger blocks, in the order it had."""
    buffer = make(100, PLENTY, 1)
    old = await put_rows(buffer, 1, 2, 3)
    taken = buffer.take(100)
    young = await put_rows(buffer, 4)
    buffer.give_back(taken)
    assert buffer.rows_waiting == 10
    assert contents(buffer.take(100)) == contents([*old, *young])


@pytest.mark.parametrize("older_first", [True, False])
async def test_two_writers_giving_back_keep_the_order(make: MakeBuffer, older_first: bool) -> None:
    """The oldest block is the next one to be taken, whichever writer fails first."""
    buffer = make(100, PLENTY, 1)
    blocks = await put_rows(buffer, 1, 1, 1, 1, 1, 1)
    older, younger = buffer.take(2), buffer.take(2)
    for each in (older, younger) if older_first else (younger, older):
        buffer.give_back(each)
    assert buffer.first_received_s() == about(blocks[0].received_s)
    assert contents(buffer.take(100)) == contents(blocks)


async def test_part_given_back_part_settled_adds_up(make: MakeBuffer) -> None:
    """A part of a batch may be settled, and the rest given back."""
    buffer = make(100, PLENTY, 1)
    first, second, third = await put_rows(buffer, 1, 2, 3)
    taken = buffer.take(100)
    buffer.settle(taken[1:2])
    buffer.give_back([taken[0], taken[2]])
    stats = buffer.stats()
    assert (stats.rows, stats.rows_waiting, stats.blocks_waiting) == (4, 4, 2)
    assert stats.size_bytes == len(first.tuples) + len(third.tuples)
    assert contents(buffer.take(100)) == contents([first, third])
    assert second.rows == 2


async def test_oldest_is_told_also_while_it_is_with_a_writer(make: MakeBuffer) -> None:
    """The age is that of the oldest block that is not settled."""
    buffer = make(100, PLENTY, 1)
    assert buffer.stats().oldest_received_s is None
    blocks = [await put(buffer, make_block(1, age_s=age_s)) for age_s in (40, 30, 20, 10)]
    taken = buffer.take(3)
    assert buffer.stats().oldest_received_s == about(blocks[0].received_s)
    buffer.settle(taken[:1])  # one piece of the batch is stored, the others are retried
    assert buffer.stats().oldest_received_s == about(blocks[1].received_s)
    buffer.give_back(taken[1:])
    assert buffer.stats().oldest_received_s == about(blocks[1].received_s)
    buffer.settle(buffer.take(2))
    assert buffer.stats().oldest_received_s == about(blocks[3].received_s)
    buffer.settle(buffer.take(1))
    assert buffer.stats().oldest_received_s is None


async def test_taker_waits_for_as_many_rows_as_it_asked(make: MakeBuffer) -> None:
    """`wait_rows` returns when enough rows wait; blocks that were given back count."""
    buffer = make(100, PLENTY, 1)
    assert buffer.first_received_s() is None
    taker = asyncio.create_task(buffer.wait_rows(5))
    await put_rows(buffer, 2, 2)
    await spin()
    assert not taker.done()
    taken = buffer.take(2)
    await put_rows(buffer, 2)
    await spin()
    assert not taker.done()
    buffer.give_back(taken)
    async with asyncio.timeout(1):
        await taker
        await buffer.wait_rows(6)


async def test_taker_does_not_wait_for_more_rows_while_a_post_waits_for_its_commit(
    make: MakeBuffer,
) -> None:
    """That is so until its block is taken, and again once it is given back."""
    buffer = make(100, PLENTY, 1)
    taker = asyncio.create_task(buffer.wait_rows(50))
    await put_rows(buffer, 2)
    await spin()
    assert not taker.done()
    assert not buffer.commit_awaited
    awaited = make_block(3, ack=Ack())
    await (await buffer.reserve(3, len(awaited.tuples), awaited=True)).put(awaited)
    async with asyncio.timeout(1):
        await taker
        await buffer.wait_rows(100)
    assert buffer.commit_awaited
    taken = buffer.take(100)
    assert not buffer.commit_awaited
    taker = asyncio.create_task(buffer.wait_rows(50))
    await put_rows(buffer, 2)
    await spin()
    assert not taker.done()
    buffer.give_back(taken)
    async with asyncio.timeout(1):
        await taker
    assert buffer.commit_awaited
    buffer.settle(buffer.take(100))
    assert not buffer.commit_awaited
    assert empty(buffer)


async def test_taker_cancelled_takes_nothing_with_it(make: MakeBuffer) -> None:
    """If a wait for rows is cancelled, even as rows come, the next writer gets them."""
    buffer = make(100, PLENTY, 1)
    for cancel_first in (True, False):
        taker = asyncio.create_task(buffer.wait_rows(1))
        await spin()
        if cancel_first:
            taker.cancel()
        await put_rows(buffer, 3)
        taker.cancel()
        await asyncio.gather(taker, return_exceptions=True)
    await buffer.wait_rows(6)
    assert sum(block.rows for block in buffer.take(100)) == 6
