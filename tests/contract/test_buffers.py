"""What every buffer promises to the receiver: room, first come, first served, within a time."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from ingest.model.errors import BufferFull, Stopping
from ingest.model.ports import Inlet
from ingest.system.clock import monotonic_s
from tests.contract.buffers import (
    PLENTY,
    MakeBuffer,
    contents,
    empty,
    end,
    put,
    put_rows,
    queue_up,
    spin,
)
from tests.support.journals import make_block, size_of


async def test_room_comes_free_only_when_settled(make: MakeBuffer) -> None:
    """Blocks that a writer has taken still count, so that giving them back cannot overflow."""
    buffer = make(4, PLENTY, 0)
    await put_rows(buffer, 4)
    taken = buffer.take(4)
    with pytest.raises(BufferFull):
        await buffer.reserve(1, 1)
    buffer.give_back(taken)
    assert buffer.stats().rows == 4
    buffer.settle(buffer.take(4))
    (await buffer.reserve(4, 4)).release()


async def test_room_released_twice_or_after_put_counts_once(make: MakeBuffer) -> None:
    """Release is safe in a `finally`: it undoes a reservation, never a put."""
    buffer = make(10, PLENTY, 0)
    reservation = await buffer.reserve(10, 10)
    reservation.release()
    reservation.release()
    assert empty(buffer)
    block = make_block(5)
    reservation = await buffer.reserve(5, len(block.tuples))
    await reservation.put(block)
    reservation.release()
    assert buffer.stats().rows == 5


async def test_waiting_posts_are_served_in_order_and_nobody_overtakes(make: MakeBuffer) -> None:
    """A small post waits behind a large one."""
    buffer = make(10, PLENTY, 5)
    reservation = await buffer.reserve(8, 8)
    large, small, latecomer = await queue_up(buffer, 5, 1, 1)
    assert not any(each.done() for each in (large, small, latecomer))
    assert buffer.stats().posts_waiting == 3
    reservation.release()
    await spin()
    assert all(each.done() for each in (large, small, latecomer))
    await end([large, small, latecomer])
    assert empty(buffer)


async def test_waiting_post_gets_room_when_a_writer_settles(make: MakeBuffer) -> None:
    """A full buffer slows posts down before it refuses them."""
    buffer = make(4, PLENTY, 5)
    await put_rows(buffer, 4)
    (post,) = await queue_up(buffer, 2)
    buffer.settle(buffer.take(4))
    (await post).release()
    assert empty(buffer)


async def test_wait_for_space_is_bounded(make: MakeBuffer) -> None:
    """A post waits `put_wait_s_max`, not less and not much more, and no room is lost."""
    buffer = make(4, PLENTY, 0.05)
    reservation = await buffer.reserve(4, 4)
    began_s = monotonic_s()
    with pytest.raises(BufferFull):
        await buffer.reserve(1, 1)
    assert 0.045 <= monotonic_s() - began_s < 0.5
    reservation.release()
    assert empty(buffer)


async def test_post_that_gives_up_lets_a_smaller_one_in(make: MakeBuffer) -> None:
    """A large post at the head delays the others no longer than its own wait."""
    buffer = make(10, PLENTY, 0.05)
    reservation = await buffer.reserve(8, 8)
    large = asyncio.create_task(buffer.reserve(5, 5))
    await asyncio.sleep(0.03)
    (small,) = await queue_up(buffer, 2)
    with pytest.raises(BufferFull):
        await large
    (await small).release()
    reservation.release()
    assert empty(buffer)


async def test_bytes_over_the_bound_are_refused_at_once(make: MakeBuffer) -> None:
    """Bodies that wait need memory too. If they would exceed `bytes_max`, a post does not wait."""
    buffer = make(10, 100, 60)
    reservation = await buffer.reserve(10, 60)
    posts = await queue_up(buffer, 30)
    assert buffer.stats().size_bytes == 90
    async with asyncio.timeout(1):
        with pytest.raises(BufferFull):
            await buffer.reserve(1, 11)
    posts += await queue_up(buffer, 10)
    assert buffer.stats().size_bytes == 100
    reservation.release()
    await end(posts)
    assert empty(buffer)


@pytest.mark.parametrize("rows_and_bytes", [(11, 1), (1, 101)])
async def test_post_larger_than_the_buffer_is_refused(
    make: MakeBuffer, rows_and_bytes: tuple[int, int]
) -> None:
    """It is refused within the wait, and does not harm the posts behind it."""
    buffer = make(10, 100, 0.02)
    with pytest.raises(BufferFull):
        await buffer.reserve(*rows_and_bytes)
    (await buffer.reserve(10, 100)).release()
    assert empty(buffer)


async def test_waiter_cancelled_before_its_grant_leaks_nothing(make: MakeBuffer) -> None:
    """If a client hangs up while it waits, the next one gets its place."""
    buffer = make(4, PLENTY, 5)
    reservation = await buffer.reserve(4, 4)
    gone, next_one = await queue_up(buffer, 4, 2)
    gone.cancel()
    await spin()
    assert gone.cancelled()
    reservation.release()
    (await next_one).release()
    assert empty(buffer)


@pytest.mark.parametrize("first", ["cancel", "grant"])
@pytest.mark.parametrize("by", ["release", "settle", "shut"])
async def test_waiter_cancelled_in_the_round_of_its_grant_leaks_nothing(
    make: MakeBuffer, first: str, by: str
) -> None:
    """In either order of the two, no room is lost."""
    buffer = make(4, PLENTY, 5)
    block = make_block(4)
    reservation = await buffer.reserve(4, len(block.tuples))
    grant = buffer.shut_inlet if by == "shut" else reservation.release
    if by == "settle":
        await reservation.put(block)
        taken = buffer.take(4)
        grant = partial(buffer.settle, taken)
    gone, next_one = await queue_up(buffer, 4, 3)
    for step in (gone.cancel, grant) if first == "cancel" else (grant, gone.cancel):
        step()
    await spin()
    assert gone.cancelled()
    if by == "shut":
        with pytest.raises(Stopping):
            await next_one
        reservation.release()
    else:
        (await next_one).release()
    assert empty(buffer)


async def test_waiter_cancelled_after_its_grant_keeps_its_room(make: MakeBuffer) -> None:
    """The caller has the reservation, and puts or releases it."""
    buffer = make(4, PLENTY, 5)
    reservation = await buffer.reserve(4, 4)
    (post,) = await queue_up(buffer, 3)
    reservation.release()
    await spin()
    assert not post.cancel()
    assert buffer.stats().size_bytes == 3
    post.result().release()
    assert empty(buffer)


async def test_wait_that_ends_in_the_tick_of_its_grant_leaks_nothing(make: MakeBuffer) -> None:
    """The caller has the room, or the room is free again."""
    for settle_after_s in (0.018, 0.019, 0.02, 0.021, 0.022):
        buffer = make(4, PLENTY, 0.02)
        reservation = await buffer.reserve(4, 4)
        posts = [asyncio.create_task(buffer.reserve(1, 1)) for _ in range(20)]
        asyncio.get_running_loop().call_later(settle_after_s, reservation.release)
        results = await asyncio.gather(*posts, return_exceptions=True)
        await asyncio.sleep(0.005)  # the release may be last
        rooms = [each for each in results if not isinstance(each, BaseException)]
        assert all(isinstance(each, BufferFull) for each in results if each not in rooms)
        assert buffer.stats().size_bytes == len(rooms)
        for each in rooms:
            each.release()
        assert empty(buffer)


async def test_shut_wakes_everybody(make: MakeBuffer) -> None:
    """Posts get Stopping, and writers see what is left."""
    buffer = make(4, PLENTY, 60)
    block = make_block(4)
    reservation = await buffer.reserve(4, len(block.tuples))
    posts = await queue_up(buffer, 1, 2)
    takers = [asyncio.create_task(buffer.wait_rows(rows)) for rows in (1, 100)]
    await spin()
    assert not buffer.shut
    buffer.shut_inlet()
    buffer.shut_inlet()  # a second signal
    async with asyncio.timeout(1):
        await asyncio.gather(*takers)
        for result in await asyncio.gather(*posts, return_exceptions=True):
            assert isinstance(result, Stopping)
        with pytest.raises(Stopping):
            await buffer.reserve(1, 1)
        await buffer.wait_rows(100)
    assert buffer.shut
    await reservation.put(block)  # a post that had its room before is kept all the same
    assert contents(buffer.take(10)) == contents([block])


async def test_refused_posts_are_told_to_come_back_later_as_the_outage_lasts(
    make: MakeBuffer,
) -> None:
    """Retry-After grows with the age of the oldest block, from a second to a bound."""
    hints = []
    for age_s in (0, 8, 20, 3600):
        buffer = make(1, PLENTY, 0)
        await put(buffer, make_block(1, age_s=age_s))
        buffer.take(1)  # with a writer that tries and tries
        with pytest.raises(BufferFull) as caught:
            await buffer.reserve(1, 1)
        hints.append(caught.value.retry_after_s)
    assert hints == sorted(hints)
    assert hints[0] >= 1
    assert 1 < hints[1] < hints[2] < hints[3] <= 60


async def test_room_for_all_blocks_of_a_post_is_reserved_at_once_or_not_at_all(
    make: MakeBuffer,
) -> None:
    """It does not wait, and goes before nobody who waits."""
    buffer = make(10, PLENTY, 5)
    inlet: Inlet = buffer
    held = await inlet.reserve(5, 5)
    assert inlet.reserve_all([(3, 3), (3, 3)]) is None
    reserved = buffer.reserve_all([size_of(2), (3, 200)])
    assert reserved is not None
    assert buffer.reserve_all([(1, 1)]) is None
    await reserved[0].put(make_block(2))
    for each in reserved:
        each.release()
    (waits,) = await queue_up(buffer, 9)
    assert buffer.reserve_all([(1, 1), (1, 1)]) is None
    waits.cancel()
    await spin()
    held.release()
    assert buffer.stats().rows == 2
    for each in buffer.reserve_all([(4, 4), (4, 4)]) or pytest.fail("there is room"):
        each.release()
    buffer.shut_inlet()
    with pytest.raises(Stopping):
        buffer.reserve_all([(1, 1)])
