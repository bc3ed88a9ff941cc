"""The outlet of a stream: deliveries become blocks, and each message is done once it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from ingest.buffers.frames import HEAD_BYTES
from ingest.model.block import Block
from ingest.roles.nats.pulling import Delivery
from ingest.roles.outlet import encode_message
from tests.contract.buffers import contents, spin
from tests.support.blocks import make_block
from tests.support.streams import Joined


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


async def test_another_message_at_the_same_place_is_kept_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream was deleted and made anew while a message of the old one waits here."""
    joined, done = Joined(), list[str]()

    def note(deliveries: Iterable[Delivery]) -> None:
        done.extend(each.ack_subject for each in deliveries)

    monkeypatch.setattr(joined.stream, "done", note)
    for rows, ack_subject in ((3, "old"), (4, "new")):
        block = make_block(rows)
        block.seal()
        joined.outlet.deliver(Delivery(encode_message(block), 5, 1, ack_subject))
    assert joined.rows_waiting == 7
    joined.settle(joined.take(10))
    assert done == ["old", "new"]


@pytest.mark.parametrize("bound", ["rows_max", "bytes_max"])
async def test_more_is_wanted_until_memory_is_full_and_again_below_it(bound: str) -> None:
    """Exactly at the bound of rows or bytes; one request more may come."""
    size = 1 if bound == "rows_max" else len(make_block(1).tuples)
    joined = Joined(request_max=2, **{bound: 30 * size})  # type: ignore[arg-type]
    publish(joined, 24, *[1] * 5)
    assert joined.stream.wanted.is_set()
    publish(joined, *[1] * 5)
    assert not joined.stream.wanted.is_set()
    assert len(joined.stream.pending) >= 2  # all beyond the request that was open
    first = joined.take(1)
    joined.settle(joined.take(joined.stats().rows - 30))
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
