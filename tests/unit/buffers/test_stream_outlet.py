"""The outlet of a stream: deliveries become blocks, and each message is done once it is stored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest.broker.pulling import Delivery
from ingest.buffers.frames import HEAD_BYTES
from ingest.buffers.stream.messages import encode_message
from ingest.model.block import Block
from tests.contract.buffers import contents, spin
from tests.support.blocks import make_block
from tests.support.streams import Joined, Poster


def publish(joined: Joined, *rows: int) -> list[Block]:
    """Put one message for each number of rows into the stream."""
    blocks = [make_block(each) for each in rows]
    for number, block in enumerate(blocks, len(joined.stream.ids)):
        block.seal()
        joined.stream.publish(f"other-{number}", encode_message(block))
    return blocks


def said(joined: Joined, word: str) -> list[int]:
    """Return the places of which this was said, in order."""
    return [place for each, place in joined.stream.said if each == word]


async def test_message_is_a_block_and_done_once_it_is_settled() -> None:
    """Until then the stream has it; what was in the frame is in the block."""
    joined = Joined()
    (sent,) = publish(joined, 3)
    assert joined.writer.delivered == 3
    (block,) = joined.take(100)
    assert contents([block]) == contents([sent])
    assert (block.received_us, block.newest_ts_us) == (sent.received_us, sent.newest_ts_us)
    assert block.received_s == pytest.approx(sent.received_s, abs=0.05, rel=0)
    assert not block.doubtful
    assert joined.stats().rows_kept == 3
    assert not joined.stream.said
    joined.give_back([block])
    assert joined.take(100) == [block]
    joined.settle([block])
    assert said(joined, "done") == [1]
    assert (joined.stats().rows, joined.stats().rows_kept) == (0, 0)
    assert joined.imbalance == (0, 0)


@pytest.mark.parametrize("taken", [False, True])
async def test_message_that_comes_again_while_it_is_here_is_kept_once(taken: bool) -> None:
    """The newest delivery is acknowledged; another writer may have stored it meanwhile."""
    joined = Joined()
    publish(joined, 3)
    blocks = joined.take(100) if taken else []
    joined.stream.deliver(1)
    assert joined.stats().rows == joined.writer.delivered == 3
    (kept,) = joined.outlet._deliveries.values()
    assert len(kept.data) == HEAD_BYTES, "the block has its own copy of the rows"
    (block,) = blocks or joined.take(100)
    assert block.doubtful
    joined.settle([block])
    assert joined.stream.done_places == [1]
    assert joined.stream.out == {}
    assert not joined.outlet._deliveries
    assert joined.imbalance == (0, 0)


async def test_message_that_comes_after_it_was_settled_is_a_block_again() -> None:
    """Its acknowledgement was lost. The primary key absorbs it; each delivery counts."""
    joined = Joined()
    joined.stream.loses_acks = True
    publish(joined, 3)
    joined.settle(joined.take(100))
    joined.stream.loses_acks = False
    joined.stream.deliver(1)
    (block,) = joined.take(100)
    assert block.doubtful
    assert joined.writer.delivered == 6
    assert joined.imbalance == (0, 0)
    joined.settle([block])
    assert joined.stream.out == {}


async def test_more_is_wanted_until_memory_is_full_and_again_below_it() -> None:
    """Exactly at the bound of rows or bytes; one request more may come."""
    size = len(make_block(1).tuples)
    several: tuple[dict[str, Any], ...] = ({"rows_max": 30}, {"bytes_max": 30 * size})
    for bounds in several:
        joined = Joined(request_max=2, **bounds)
        publish(joined, 24, *[1] * 5)
        assert joined.stream.wanted.is_set()
        publish(joined, 1)
        assert not joined.stream.wanted.is_set()
        publish(joined, *[1] * 4)
        assert len(joined.stream.pending) >= 2  # all beyond the request that was open
        here = joined.stats().rows
        assert here <= 32
        first = joined.take(1)
        joined.settle(joined.take(here - 30))
        assert not joined.stream.wanted.is_set()
        joined.settle(first)
        for _ in range(10):
            joined.settle(joined.take(100))
        assert joined.stream.wanted.is_set()
        assert joined.writer.committed == 34
        assert joined.imbalance == (0, 0)


async def test_room_of_a_replay_that_was_released_lets_messages_come_again() -> None:
    """Nobody tells the outlet of that, so it looks now and then."""
    joined = Joined(rows_max=4, request_max=1)
    reservation = await joined.outlet.reserve(4, 1)
    publish(joined, 1, 1)
    joined.settle(joined.take(100))
    assert not joined.stream.wanted.is_set()
    reservation.release()
    stopping = asyncio.Event()
    running = asyncio.create_task(joined.outlet.run(stopping, 0.01))
    await asyncio.sleep(0.03)
    assert joined.stats().rows == 1
    stopping.set()
    await running


async def test_broker_is_told_that_messages_are_still_here() -> None:
    """All of them, taken or not, until they are settled; not blocks without a message."""
    joined = Joined()
    publish(joined, 1, 2)
    assert joined.outlet.take_in(make_block(5))
    taken = joined.take(1)
    stopping = asyncio.Event()
    running = asyncio.create_task(joined.outlet.run(stopping, 0.01))
    await asyncio.sleep(0.025)
    assert set(said(joined, "working")) == {1, 2}
    joined.settle([*taken, *joined.take(100)])
    joined.stream.said.clear()
    await asyncio.sleep(0.025)
    assert not said(joined, "working")
    stopping.set()
    await running


@pytest.mark.parametrize("data", [b"", b"not ours", b"\xf7JR\n" + bytes(60)])
async def test_foreign_message_goes_to_its_callback_and_nowhere_else(data: bytes) -> None:
    """It is no block, it is not acknowledged, and the next message comes."""
    joined = Joined()
    delivery = Delivery(data, 7, 1, "ack.7")
    joined.outlet.deliver(delivery)
    assert [each for each, _ in joined.foreign] == [delivery]
    assert all(why for _, why in joined.foreign)
    publish(joined, 2)
    assert joined.writer.delivered == joined.stats().rows == joined.stats().rows_kept == 2
    assert not joined.stream.said
    assert joined.imbalance == (0, 0)


async def test_rest_goes_back_to_the_stream_and_only_that() -> None:
    """Not what a writer has, and not blocks without a message; another writer gets it."""
    joined = Joined()
    sent = publish(joined, 1, 2, 3)
    (taken,) = joined.take(1)
    joined.writer.replayed = 5
    assert joined.outlet.take_in(make_block(5))
    joined.shut_inlet()
    for _ in range(2):
        await joined.keep_rest()
    assert said(joined, "later") == [2, 3]
    assert joined.writer.returned == 5
    stats = joined.stats()
    assert (stats.rows, stats.rows_waiting, stats.rows_kept, stats.rows_taken) == (6, 5, 1, 1)
    assert joined.imbalance == (0, 0)
    joined.settle([taken])
    assert said(joined, "done") == [1]
    other = Joined()
    other.stream = joined.stream
    joined.stream.take = other.outlet.deliver
    joined.stream.wanted.set()
    assert contents(other.take(100)) == contents(sent[1:])
    assert all(block.doubtful for block in other.outlet._deliveries)


async def test_writer_that_gives_back_after_the_end_leaves_it_to_the_next_keep_rest() -> None:
    """A batch that failed at the end is not lost, and not held by a process that has ended."""
    joined = Joined()
    publish(joined, 4)
    taken = joined.take(100)
    joined.shut_inlet()
    await joined.keep_rest()
    assert not said(joined, "later")
    joined.give_back(taken)
    await joined.keep_rest()
    assert said(joined, "later") == [1]
    assert joined.imbalance == (0, 0)
    assert joined.stats().rows == 0


async def test_message_that_comes_after_the_end_is_given_back_at_once() -> None:
    """A request that was open may bring some. Nobody here would ever store them."""
    joined = Joined(request_max=3)
    publish(joined, 1)
    joined.shut_inlet()
    publish(joined, 2)
    assert joined.stats().rows == 3  # writers still take what comes before the end
    await joined.keep_rest()
    publish(joined, 3)
    await spin()
    assert 3 in {*said(joined, "later"), *joined.stream.pending}
    joined.outlet.deliver(Delivery(joined.stream.stored[2], 3, 1, "ack.3"))
    assert said(joined, "later")[-1] == 3
    assert joined.stats().rows == 0
    assert joined.writer.delivered == joined.writer.returned == 3
    assert joined.imbalance == (0, 0)


async def test_posts_reach_the_writer_and_both_balances_hold() -> None:
    """From the keeper of a gateway, by the stream, to the table."""
    joined = Joined()
    poster = Poster(joined.inlet, joined.gateway)
    for number in range(30):
        poster.post(make_block(2), ["durable", "buffered"][number % 2], invalid=number % 3 == 0)
        if number % 4 == 0:
            await spin()
            joined.settle(joined.take(5))
    await poster.finish()
    await joined.inlet.finish()
    assert {post.status for post in poster.posts} == {202}
    joined.settle(joined.take(1 << 40))
    assert joined.gateway.published == joined.writer.delivered == joined.writer.committed == 60
    assert sorted(joined.stream.done_places) == list(range(1, len(joined.stream.stored) + 1))
    assert joined.imbalance == (0, 0)
